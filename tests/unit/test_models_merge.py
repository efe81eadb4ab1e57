"""Merging: the whole model gives the logits of base and adapter, from disk, or there is none."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

import toolkit
from tests import tiny
from tests.unit.test_models_adapters import PROBE, recipe, saved
from tests.unit.test_models_reward import SEQUENCES
from tests.unit.test_models_reward import saved as saved_reward
from toolkit import cli
from toolkit.artifacts.base_identity import base_identity
from toolkit.artifacts.proof_file import write_proof
from toolkit.errors import HubError, RecipeError, TrainingError
from toolkit.models import merge as merging
from toolkit.models.reward import load_reward_model

# what PEFT says when it puts an adapter on one of two tied matrices, here to be merged
pytestmark = pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings:UserWarning")


def remember(base, directory, **keys):
    """Write what a stage records of its base."""
    stage = recipe(base, **keys)
    found = {"recipe": stage.resolved(), "base_identity": base_identity(str(base))}
    (directory / "stage.json").write_text(json.dumps(found, default=str))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base of a run's own, and an adapter over it with rows of added tokens."""
    root = tmp_path_factory.mktemp("trained")
    base = tiny.save_base(root / "base")
    saved(base, root / "sft")
    remember(base, root / "sft")
    return base, root / "sft"


def logits(model, sequences=PROBE):
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits for ids in sequences]


def assert_same_model(adapter, merged, atol=1e-5):
    """Plain transformers gives from the merged folder what plain PEFT gives from the adapter's."""
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(merged),
        AutoPeftModelForCausalLM.from_pretrained(adapter),
    )
    for found, wanted in zip(logits(ours), logits(theirs), strict=True):
        assert torch.allclose(found, wanted, atol=atol)
    return ours


def test_a_whole_model_with_all_that_belongs_to_it(trained, tmp_path, capsys):
    base, adapter = trained
    words = ["merge", str(adapter), "--output", str(tmp_path / "out"), "--max_shard_size", "20KB"]
    assert cli.main(words) == 0
    out = tmp_path / "out"
    printed = " ".join(capsys.readouterr().out.split())
    assert "proved: loaded again by plain transformers in float32" in printed
    assert "nothing beside" not in printed
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 3
    model = assert_same_model(adapter, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    expected = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.chat_template == expected.chat_template
    assert (tokenizer.eos_token, len(tokenizer)) == ("<|im_end|>", len(expected))
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    record = json.loads((out / "merge.json").read_text())
    assert record["base"]["name"] == str(base)
    assert record["verification"]["largest_difference"] <= record["verification"]["tolerance"]
    assert record["verification"]["effect"] > 0.1
    assert not list(tmp_path.glob(".*"))
    assert out.stat().st_mode & 0o777 == adapter.stat().st_mode & 0o777


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 8},
        {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["rows", "dora", "rslora", "whole"],
)
def test_every_kind_of_adapter(head, keys, tiny_base, untied_base, tmp_path):
    saved(tiny_base if head == "tied" else untied_base, tmp_path / "adapter", **keys)
    toolkit.merge(tmp_path / "adapter", tmp_path / "out")
    model = assert_same_model(tmp_path / "adapter", tmp_path / "out")
    tied = head == "tied" and "lora_modules_to_save" not in keys
    assert model.config.tie_word_embeddings is tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["lora on the embedding", "lora on the head", "whole head", "whole embedding"],
)
def test_a_stranger_s_adapter_on_one_of_two_tied_matrices(
    head, config, tiny_base, untied_base, tmp_path, capsys
):
    base = AutoModelForCausalLM.from_pretrained(tiny_base if head == "tied" else untied_base)
    torch.manual_seed(3)
    model = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    toolkit.merge(tmp_path / "adapter", tmp_path / "out")
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for found, wanted in zip(logits(ours, [[5, 6, 7]]), logits(theirs, [[5, 6, 7]]), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    printed = " ".join(capsys.readouterr().out.split())
    assert "nothing beside" in printed
    assert "brings no tokenizer" in printed
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_reward_adapter_becomes_a_sequence_classifier(tiny_base, tmp_path):
    expected = torch.cat(saved_reward(tiny_base, tmp_path / "reward"))
    toolkit.merge(tmp_path / "reward", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1
    found = torch.cat([scores[0] for scores in logits(model, SEQUENCES)])
    assert torch.allclose(found, expected, atol=1e-5)
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = words.pad({"input_ids": SEQUENCES}, return_tensors="pt")
    with torch.no_grad():  # needs the pad token in config.json
        together = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert torch.allclose(together, expected, atol=1e-5)
    ours, _ = load_reward_model(str(tmp_path / "out"))
    assert ours.score(SEQUENCES) == pytest.approx(expected.tolist(), abs=1e-5)


def test_over_quantized_weights_it_was_trained_and_into_plain_ones_it_goes(tmp_path, capsys):
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    saved(base, tmp_path / "sft")
    remember(base, tmp_path / "sft", load_in_4bit=True)
    toolkit.merge(tmp_path / "sft", tmp_path / "out")
    assert "trained over quantized weights" in " ".join(capsys.readouterr().out.split())
    model = assert_same_model(tmp_path / "sft", tmp_path / "out")
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")


def test_bfloat16_is_near_and_says_how_near(trained, tmp_path):
    _, adapter = trained
    found = toolkit.merge(adapter, tmp_path / "out", dtype="bfloat16").metrics
    assert 1e-4 < found["largest_difference"] < found["tolerance"] < 0.5
    assert found["difference"] < 0.1 * found["effect"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    with pytest.raises(RecipeError, match="expected one of auto, bfloat16"):
        toolkit.merge(adapter, tmp_path / "other", dtype="int8")


def test_an_adapter_that_rounding_would_swallow_is_not_merged(trained, tmp_path):
    _, adapter = trained
    weak = altered(adapter, tmp_path / "weak", lambda k, t: t * (1e-3 if "lora_B" in k else 1))
    with pytest.raises(TrainingError, match=r"what was trained is lost; merge with --dtype fl"):
        toolkit.merge(weak, tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    toolkit.merge(weak, tmp_path / "out", dtype="float32")


def altered(adapter, directory, change):
    """A copy of an adapter with each of its weights changed; None leaves one out."""
    shutil.copytree(adapter, directory)
    path = directory / "adapter_model.safetensors"
    tensors = {key: change(key, tensor) for key, tensor in load_file(path).items()}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    return directory


@pytest.mark.parametrize("fault", ["nan", "dropped", "more", "zeroed"])
def test_a_damaged_adapter_is_not_merged(fault, trained, tmp_path):
    _, adapter = trained
    torn = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def change(key, tensor):
        if fault == "zeroed":
            return tensor * ("lora_B" not in key)
        if key != torn:
            return tensor
        return None if fault == "dropped" else tensor * float("nan")

    broken = altered(adapter, tmp_path / "broken", change if fault != "more" else lambda _, t: t)
    if fault == "more":
        path = broken / "adapter_model.safetensors"
        save_file(load_file(path) | {"base_model.model.score.weight": torch.ones(1, 32)}, path)
    error, said = {
        "nan": (TrainingError, f"tensor {torn} holds NaN"),
        "dropped": (RecipeError, f"the file of weights lacks {torn}"),
        "more": (RecipeError, r"the file of weights holds base_model\.model\.score\.weight"),
        "zeroed": (TrainingError, "changes no logit of its base"),
    }[fault]
    with pytest.raises(error, match=said):
        toolkit.merge(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_reward_adapter_without_its_head_is_not_merged(tiny_base, tmp_path):
    saved_reward(tiny_base, tmp_path / "reward")
    broken = altered(
        tmp_path / "reward", tmp_path / "broken", lambda k, t: None if "score" in k else t
    )
    with pytest.raises(RecipeError, match=r"has no head \(base_model\.model\.score\.weight\)"):
        toolkit.merge(broken, tmp_path / "out")


def test_a_merge_that_goes_wrong_leaves_nothing(trained, tmp_path, monkeypatch):
    """The proof reads what is on disk: a file written wrong is no merged model."""
    upstream = merging.save_merged

    def save_wrong(merged, words, adapter, folder, max_shard_size):
        with torch.no_grad():
            merged.model.layers[0].mlp.up_proj.weight[0] += 0.05
        upstream(merged, words, adapter, folder, max_shard_size)

    monkeypatch.setattr(merging, "save_merged", save_wrong)
    with pytest.raises(TrainingError, match="does not give the logits of base and adapter"):
        toolkit.merge(trained[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_same_shapes_are_not_the_same_base(trained, tmp_path, capsys):
    base, adapter = trained
    other = tiny.save_base(tmp_path / "other", seed=7)
    with pytest.raises(
        RecipeError, match=r"other is not the base that .*sft was trained over: its weights differ"
    ):
        toolkit.merge(adapter, tmp_path / "out", model_name_or_path=other)
    moved = shutil.copytree(base, tmp_path / "moved")
    toolkit.merge(adapter, tmp_path / "out", model_name_or_path=moved)
    assert_same_model(adapter, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(moved)
    (moved / "model.safetensors").unlink()
    (moved / "vocab.txt").write_text("beside")
    model.save_pretrained(moved, max_shard_size="30KB")
    toolkit.merge(adapter, tmp_path / "cut", model_name_or_path=moved)
    config = json.loads((moved / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"moved is not the base .*: its config\.json differ"):
        toolkit.merge(adapter, tmp_path / "again", model_name_or_path=moved)
    wider = tiny.save_base(tmp_path / "wider", hidden_size=64)
    stranger = altered(adapter, tmp_path / "stranger", lambda _, tensor: tensor)
    (stranger / "stage.json").unlink()
    with pytest.raises(RecipeError, match=r"stranger does not fit the base .*wider"):
        toolkit.merge(stranger, tmp_path / "again", model_name_or_path=wider)
    with pytest.raises(HubError, match="NAMESPACE/NAME: not in the local cache"):
        toolkit.merge(adapter, tmp_path / "again", model_name_or_path="NAMESPACE/NAME")


@pytest.mark.parametrize("of", ["policy", "critic"])
def test_what_counts_as_unverified_is_not_merged(of, trained, tmp_path):
    folder = altered(trained[1], tmp_path / "sft", lambda _, tensor: tensor)
    write_proof(folder, {})
    name = folder if of == "policy" else shutil.copytree(trained[1], folder / "value")
    said = (
        r"sft counts as unverified \(the proof was not finished\): see what `toolkit verify .*sft`"
    )
    with pytest.raises(TrainingError, match=said):
        toolkit.merge(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_output_folder_stays(trained, tmp_path):
    base, adapter = trained
    out = tmp_path / "out"
    out.mkdir()
    toolkit.merge(adapter, out)
    before = (out / "merge.json").read_text()
    with pytest.raises(RecipeError, match="exists and is not empty"):
        toolkit.merge(adapter, out)
    assert (out / "merge.json").read_text() == before
    toolkit.merge(adapter, out, overwrite=True, dtype="bfloat16")
    assert json.loads((out / "merge.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "notes").mkdir()
    for place, said in (
        (out, "holds the folder notes"),
        (adapter, "which is merged from"),
        (base.parent, "which is merged from"),
    ):
        with pytest.raises(RecipeError, match=said):
            toolkit.merge(adapter, place, overwrite=True)


def test_only_an_adapter_of_a_language_model_or_classifier_is_merged(trained, tmp_path):
    base, adapter = trained
    with pytest.raises(RecipeError, match="found a whole model"):
        toolkit.merge(base, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"with config\.json or adapter_config\.json"):
        toolkit.merge(tmp_path, tmp_path / "out")
    other = altered(adapter, tmp_path / "other", lambda _, tensor: tensor)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_2_SEQ_LM"}))
    with pytest.raises(RecipeError, match="found task_type 'SEQ_2_SEQ_LM'"):
        toolkit.merge(other, tmp_path / "out")


def test_generation_defaults_come_along(trained, tmp_path):
    _, adapter = trained
    own = altered(adapter, tmp_path / "own", lambda _, tensor: tensor)
    settings = GenerationConfig.from_pretrained(own)
    settings.max_new_tokens = 77
    settings.save_pretrained(own)
    toolkit.merge(own, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").max_new_tokens == 77
