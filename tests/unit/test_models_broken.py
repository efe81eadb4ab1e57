"""A base that is broken, in each way that a download can break it, is one line that names it."""

import errno
import json
import shutil

import pytest
import torch

from toolkit.errors import HubError, RecipeError
from toolkit.models.load import adapter_config, load_adapter, load_base, load_tokenizer, loading
from toolkit.recipe import recipe_from_keywords


@pytest.fixture
def base(tiny_base, tmp_path):
    """A copy of a base that may be broken."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def configured(base, **changed):
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def as_bin(base, content=None):
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(content or b"")


BROKEN = {
    "config cut": (lambda b: (b / "config.json").write_text("{"), r"config\.json"),
    "config no object": (lambda b: (b / "config.json").write_text("[]"), r"config\.json"),
    "config empty": (lambda b: (b / "config.json").write_text("{}"), "should have a `model_type`"),
    "unknown type": (lambda b: configured(b, model_type="nope"), "model type `nope`"),
    "no causal model": (lambda b: configured(b, model_type="t5"), "Unrecognized configuration"),
    "wrong field": (lambda b: configured(b, hidden_size="x"), "hidden_size"),
    "fields that disagree": (lambda b: configured(b, num_attention_heads=5), "not a multiple"),
    "other shapes": (lambda b: configured(b, intermediate_size=48), "weights have other shapes"),
    "own code": (
        lambda b: configured(b, model_type="z", auto_map={"AutoConfig": "x.Y"}),
        "brings Python code of its own; to trust it, add --trust_remote_code REPO@SHA",
    ),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), r"no file named model\.safet"),
    "weights garbage": (lambda b: (b / "model.safetensors").write_text("x"), r"\(model\.safet"),
    "weights cut": (lambda b: cut(b / "model.safetensors"), r"\(model\.safetensors: .*incomplete"),
    "bin garbage": (lambda b: as_bin(b, b"garbage"), r"no file that torch\.save wrote"),
    "bin empty": (as_bin, r"no file that torch\.save wrote"),
    "no tokenizer": (
        lambda b: [(b / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "holds no tokenizer that can be read",
    ),
    "tokenizer empty": (lambda b: (b / "tokenizer.json").write_text("{}"), "KeyError: 'added_tok"),
    "tokenizer cut": (lambda b: cut(b / "tokenizer.json"), r"\(tokenizer\.json: "),
    "tokenizer bytes": (lambda b: (b / "tokenizer.json").write_bytes(b"\xff"), r"\(tokenizer\.json"),
    "settings cut": (
        lambda b: (b / "tokenizer_config.json").write_text("{"), r"\(tokenizer_config\.json: "
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_base_is_one_line(spoil, said, base):
    spoil(base)
    recipe = recipe_from_keywords("sft", model_name_or_path=str(base), dataset_name="a/b")
    with pytest.raises(RecipeError, match=f"(?i){said}") as failure:  # noqa: PT012
        load_tokenizer(base)
        load_base(recipe.stages[0])
    assert str(failure.value).startswith(f"{base}: ")
    assert "\n" not in str(failure.value)
    assert "weights_only" not in str(failure.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        ConnectionError("refused"),
        ImportError("flash_attn"),
        TypeError("LlamaForCausalLM.__init__() got an unexpected keyword argument 'foo'"),
        AttributeError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_fault_of_the_files_stays_what_it_is(error, base):
    with pytest.raises(type(error)) as failure, loading(str(base)):
        raise error
    assert failure.value is error


def test_a_folder_is_not_blamed_on_the_hub(base):
    error = OSError("if you were trying to load it from 'https://huggingface.co/models', …")
    with pytest.raises(RecipeError, match="cannot be loaded"), loading(str(base)):
        raise error
    with pytest.raises(HubError), loading("org/base"):
        raise error


def test_a_broken_adapter_is_not_blamed_on_its_base(base, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    (adapter / "adapter_model.safetensors").write_text("garbage")
    with pytest.raises(RecipeError, match=rf"^{adapter} over {base}: cannot be loaded"):
        load_adapter(str(adapter), json.loads(file.read_text()))
    file.write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match="base_model_name_or_path names no base"):
        load_adapter(str(adapter), json.loads(file.read_text()))
    file.write_text("[]")
    with pytest.raises(RecipeError, match=r"adapter_config\.json: expected a JSON object, found l"):
        adapter_config(str(adapter))
    cut(file)
    with pytest.raises(RecipeError, match=rf"^{adapter}: cannot be loaded \(adapter_config\.json"):
        adapter_config(str(adapter))


def test_weights_of_another_kind_are_not_drawn_at_random(base):
    configured(base, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    recipe = recipe_from_keywords("sft", model_name_or_path=str(base), dataset_name="x")
    with pytest.raises(RecipeError, match=r"weights that its config.json asks for are not there"):
        load_base(recipe.stages[0])
