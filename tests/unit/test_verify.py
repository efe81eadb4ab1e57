"""`toolkit verify`: what was trained passes, and a planted fault of each kind is named."""

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

import toolkit
from tests import tiny, tiny_ppo
from tests.preferences import PAIRS
from toolkit import cli
from toolkit.artifacts.proof_file import unverified
from toolkit.errors import RecipeError, TrainingError
from toolkit.models import adapters
from toolkit.stages import finish
from toolkit.verification.artefact import artefact_in
from toolkit.verification.loaded import reload_arguments
from toolkit.verification.verify import verify

HEAD = "base_model.model.score.weight"
QUICK: dict[str, Any] = {
    "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lora_r": 4,
    "lr_scheduler_type": "constant", "logging_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of each kind over one base, made once; a test takes a copy."""
    root = tmp_path_factory.mktemp("trained")
    base = tiny.save_base(root / "base")
    keys: dict[str, Any] = {"model_name_or_path": str(base)} | QUICK
    toolkit.sft(output_dir=str(root / "sft"), train_dataset=tiny.ROWS, **keys)
    # the head starts at zero, so LoRA has its first gradient in the second step
    toolkit.reward(output_dir=str(root / "reward"), train_dataset=PAIRS, **keys)
    return root


@pytest.fixture
def copied(trained, tmp_path):
    """The runs in a folder of their own, with a base of their own."""
    root = tmp_path / "runs"
    shutil.copytree(trained, root)
    for path in root.rglob("*.json"):
        if path.name in {"adapter_config.json", "stage.json", "proof.json"}:
            path.write_text(path.read_text().replace(str(trained), str(root)))
    stage = json.loads((root / "sft" / "stage.json").read_text())
    assert stage["base_identity"]["name"] == str(root / "base")
    for name in ("sft", "reward"):  # the configuration names the base, so it has another digest
        path = root / name / "stage.json"
        stage = json.loads(path.read_text())
        stage["outputs"].pop("adapter_config.json")
        path.write_text(json.dumps(stage))
    return root


def as_if_by_others(folder):
    """Take away what our stages write beside an adapter."""
    for name in ("stage.json", "proof.json"):
        (folder / name).unlink()
    return folder


def change(folder, how):
    """Change a file of weights: `how` takes its tensors and gives those to write."""
    path = folder / "adapter_model.safetensors"
    save_file(how(load_file(path)), path)


def plant(fault, root, name):
    """Plant a fault in one of the runs; returns what the error must name."""
    folder = root / name
    if fault == "zeroed":
        change(folder, lambda found: {k: t * (k == HEAD) for k, t in found.items()})
        return "lora_B"
    if fault == "dropped head":
        change(folder, lambda found: {k: t for k, t in found.items() if k != HEAD})
        return HEAD
    if fault == "nan":
        change(folder, lambda found: {k: t * torch.nan for k, t in found.items()})
        return "holds NaN or infinity"
    if fault == "template":
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("'<|im_end|>'", "' <|im_end|>'"))
        return "the chat template is not the one that was trained"
    if fault == "base":
        tiny.save_base(root / "base", seed=5)
        return "its weights differ"
    raise AssertionError(fault)


def failed(folder, capsys):
    """What the command says of a folder that must not pass: every line, and the error."""
    capsys.readouterr()
    assert cli.main(["verify", str(folder)]) == TrainingError.exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.out + captured.err


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_what_was_trained_passes(name, copied, capsys):
    before = (copied / name / "proof.json").read_text()
    assert cli.main(["verify", str(copied / name)]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert "renders the same tokens as in training" in printed
    assert "the weights that it was trained over" in printed
    assert f"{'scores' if name == 'reward' else 'log-probabilities'} of 4 sequences" in printed
    assert "tensors to the bit" in printed
    assert (copied / name / "proof.json").read_text() == before


@pytest.mark.parametrize("mine", [True, False], ids=["ours", "of others"])
@pytest.mark.parametrize(
    ("fault", "name"),
    [("zeroed", "sft"), ("dropped head", "reward"), ("nan", "sft")],
)
def test_a_fault_in_the_weights_is_named(fault, name, mine, copied, capsys):
    folder = copied / name
    if not mine:
        as_if_by_others(folder)
    named = plant(fault, copied, name)
    printed = failed(folder, capsys)
    assert named in printed
    assert (unverified(folder) is not None) == mine


@pytest.mark.parametrize("fault", ["template", "base"])
def test_another_template_and_another_base_are_named(fault, copied, capsys):
    """The base has the same shapes, so PEFT loads the adapter onto it in silence."""
    named = plant(fault, copied, "sft")
    assert named in failed(copied / "sft", capsys)
    assert unverified(copied / "sft") is not None


def test_a_folder_that_is_mended_counts_as_verified_again(copied, capsys):
    path = copied / "sft" / "chat_template.jinja"
    before = path.read_text()
    plant("template", copied, "sft")
    failed(copied / "sft", capsys)
    path.write_text(before)
    assert cli.main(["verify", str(copied / "sft")]) == 0
    assert unverified(copied / "sft") is None


def test_an_adapter_by_others_passes_without_a_record(copied, capsys):
    for name in ("sft", "reward"):
        assert cli.main(["verify", str(as_if_by_others(copied / name))]) == 0
    printed = capsys.readouterr().out
    assert "nothing is known of what the files were" in printed
    assert "its weights were not recorded" in printed
    assert not (copied / "sft" / "proof.json").exists()


@pytest.mark.parametrize("fault", ["template", "tensor", "shape", "pickle", "base"])
def test_a_fault_in_an_adapter_by_others_is_named(fault, copied, capsys):
    folder = as_if_by_others(copied / "sft")
    named = {
        "template": "neither it nor its base has a chat template", "tensor": "q_proj.lora_A",
        "shape": "size mismatch", "pickle": "found none; pickled weights are not loaded",
        "base": "no such folder",
    }[fault]  # fmt: skip
    if fault == "template":
        (folder / "chat_template.jinja").unlink()
    elif fault == "tensor":
        change(folder, lambda found: {k: t for k, t in found.items() if "q_proj.lora_A" not in k})
    elif fault == "shape":
        tiny.save_base(copied / "base", hidden_size=64)
    elif fault == "pickle":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    else:
        shutil.rmtree(copied / "base")
    assert named in failed(folder, capsys)


def test_a_copy_without_the_probe_is_checked_by_its_digests(copied, capsys):
    """As it comes from the Hub, where what tells of training rows is not sent."""
    folder = copied / "sft"
    (folder / "proof.json").unlink()
    assert cli.main(["verify", str(folder)]) == 0
    change(folder, lambda found: {key: tensor * 1.001 for key, tensor in found.items()})
    assert "adapter_model.safetensors was changed since" in failed(folder, capsys)


def test_a_run_of_several_stages_is_checked_whole(copied):
    found = list(verify(copied))
    assert {finding.directory.name for finding in found} == {"sft", "reward"}
    assert all(finding.passed for finding in found)


@pytest.mark.parametrize(("folder", "said"), [("none", "no such folder"), ("", "found neither")])
def test_a_folder_without_a_model_is_refused(folder, said, tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path / folder)]) == RecipeError.exit_code
    assert said in capsys.readouterr().err


def test_what_a_folder_says_of_itself_makes_no_code_run(copied):
    """Neither trusted code nor an attention that the Hub would deliver."""
    path = copied / "sft" / "stage.json"
    stage = json.loads(path.read_text())
    base = stage["recipe"]["model_name_or_path"]
    stage["recipe"] |= {
        "trust_remote_code": f"{base}@abc", "attn_implementation": "somebody/kernel",
        "model_init_kwargs": {"trust_remote_code": True}, "dtype": "bfloat16",
    }  # fmt: skip
    path.write_text(json.dumps(stage))
    arguments = reload_arguments(artefact_in(path.parent))
    assert arguments == {"dtype": "bfloat16", "trust_remote_code": False}


class Spoils(TrainerCallback):
    """Changes the base when training ends, or never lets a gradient through."""

    def __init__(self, fault):
        self.fault = fault

    def on_train_end(self, args, state, control, model: Any = None, **kwargs):
        if self.fault == "base":
            with torch.no_grad():
                model.get_base_model().model.norm.weight.zero_()

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        if self.fault == "still":
            model.zero_grad()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("base", r"1 weights of the base are not those that were loaded, .*model\.norm\.weight"),
        ("still", "is to the bit what the stage started from"),
        ("template", "the chat template is not the one that was trained"),
        ("tokens", "the saved chat template makes other tokens of sequence 1"),
        ("weights", "is not what was trained"),
    ],
)
def test_a_stage_whose_proof_fails_keeps_its_files_and_marks_them(
    fault, said, tiny_base, chats, tmp_path, monkeypatch
):
    upstream = adapters.save_beside

    def save_beside(model, tokenizer, directory):
        upstream(model, tokenizer, directory)
        template = directory / "chat_template.jinja"
        if fault in ("template", "tokens"):
            template.write_text(template.read_text().replace("'<|im_end|>'", "' <|im_end|>'"))
        if fault == "weights":
            change(directory, lambda found: {k: t * 1.001 for k, t in found.items()})

    monkeypatch.setattr(adapters, "save_beside", save_beside)
    if fault == "tokens":
        monkeypatch.setattr(finish, "changed_words", lambda *words: None)
    with pytest.raises(TrainingError, match=said):
        toolkit.sft(
            model_name_or_path=str(tiny_base), dataset_name=str(chats), output_dir=str(tmp_path / "run"),
            callbacks=[Spoils(fault)], **QUICK,
        )  # fmt: skip
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "stage.json").exists()
    assert "as unverified" in str(unverified(tmp_path / "run"))


def test_a_base_that_does_not_fit_again_is_told_and_verified_later(
    tiny_base, chats, tmp_path, monkeypatch
):
    def no_room(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(finish.proof, "prove", no_room)
        with pytest.raises(TrainingError, match=r"does not fit into memory again.* toolkit verify"):
            toolkit.sft(
                model_name_or_path=str(tiny_base), dataset_name=str(chats),
                output_dir=str(tmp_path / "run"), **QUICK,
            )  # fmt: skip
    assert "does not fit" in str(unverified(tmp_path / "run"))
    assert not (tmp_path / "run" / "stage.json").exists()
    assert cli.main(["verify", str(tmp_path / "run")]) == 0
    assert unverified(tmp_path / "run") is None


def test_warmup_that_is_never_left_is_told_and_not_refused(tiny_base, chats, tmp_path, capsys):
    toolkit.sft(
        model_name_or_path=str(tiny_base), dataset_name=str(chats), output_dir=str(tmp_path / "run"),
        **QUICK | {"max_steps": 1, "lr_scheduler_type": "linear", "warmup_steps": 1},
    )  # fmt: skip
    assert "nothing was learnt: warmup kept the learning rate at 0" in " ".join(
        capsys.readouterr().out.split()
    )


@tiny_ppo.quiet
def test_ppo_and_grpo_are_proved_with_their_critic_and_their_prompts(tiny_base, tmp_path, capsys):
    """The probe is the prompt as the chat template asks it."""
    settings: dict[str, Any] = QUICK | {
        "model_name_or_path": str(tiny_base), "train_dataset": list(tiny_ppo.prompts()),
        "reward_funcs": [tiny_ppo.odd], "max_completion_length": 6, "num_generations": 4,
        "per_device_train_batch_size": 8, "max_steps": 1,
    }  # fmt: skip
    stages = {"ppo": toolkit.ppo, "grpo": toolkit.grpo}
    for name, stage in stages.items():
        found = stage(output_dir=str(tmp_path / name), **settings).manifest["verification"]
        assert ("largest_difference_of_values" in found) == (name == "ppo")
        assert cli.main(["verify", str(tmp_path / name)]) == 0
    assert "and the critic's values as in training" in capsys.readouterr().out
    probe = json.loads((tmp_path / "grpo" / "proof.json").read_text())["expected"]["probe"]
    _, words = toolkit.load(tmp_path / "grpo")
    assert str(words.decode(probe[0])).endswith("<|im_start|>assistant\n")
    change(tmp_path / "ppo" / "value", lambda found: found | {HEAD: found[HEAD] + 1})
    assert f"tensor {HEAD} is not what was trained" in failed(tmp_path / "ppo", capsys)


def test_a_whole_model_is_verified_too(tiny_base, chats, tmp_path, capsys):
    keys: dict[str, Any] = {"use_peft": False, "dataset_name": str(chats)}
    del (quick := dict(QUICK))["lora_r"]
    toolkit.sft(model_name_or_path=str(tiny_base), output_dir=str(tmp_path), **quick | keys)
    assert cli.main(["verify", str(tmp_path)]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    model.save_pretrained(tmp_path)
    assert "tensor model.norm.weight is not what was trained" in failed(tmp_path, capsys)
