"""Stage dpo: its reference is where it started, and what it leaves is one adapter."""

import json
import math

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.preferences import PAIRS, RANKED
from tests.unit.test_stage_resume import assert_same, interrupt
from toolkit.errors import RecipeError
from toolkit.models.proof import log_probabilities

KEYS = {
    "learning_rate": 5e-3, "lr_scheduler_type": "constant", "max_steps": 4,
    "per_device_train_batch_size": 4, "logging_steps": 1, "seed": 3,
}  # fmt: skip


def given(base, directory, keys):
    data = {"train_dataset": PAIRS, "model": str(base), "output_dir": str(directory)}
    fresh = {} if "start_from" in keys else {"lora_r": 4, "lora_dropout": 0.0}
    return data | KEYS | fresh | keys


def dpo(base, directory, **keys):
    return toolkit.dpo(**given(base, directory, keys))


def trainer_of(base, directory, **keys):
    return toolkit.build("dpo", **given(base, directory, keys))


def sft_over(base, directory):
    """A base, and an SFT adapter over it that trains the rows of ChatML's tokens."""
    result = toolkit.sft(
        model=str(base), train_dataset=tiny.ROWS, max_steps=6, learning_rate=2e-2, lora_r=4,
        output_dir=str(directory),
    )  # fmt: skip
    tensors = load_file(result.output_dir / "adapter_model.safetensors")
    assert any("trainable_tokens_delta" in name for name in tensors)
    return base, result.output_dir


@pytest.fixture(scope="module")
def started(tiny_base, tmp_path_factory):
    return sft_over(tiny_base, tmp_path_factory.mktemp("tied") / "sft")


@pytest.fixture(scope="module")
def started_untied(untied_base, tmp_path_factory):
    return sft_over(untied_base, tmp_path_factory.mktemp("untied") / "sft")


def reference_of(trainer, batch):
    """TRL's own reference log-probabilities of a batch."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "completion_mask")}
    with torch.no_grad():
        return torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))


def policy_of(trainer, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        found = trainer.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
    return found.log_probs.sum(dim=1)


@pytest.mark.parametrize("head", ["started", "started_untied"])
def test_the_reference_is_the_adapter_it_started_from(head, request, tmp_path):
    base, parent = request.getfixturevalue(head)
    trainer = trainer_of(base, tmp_path, start_from=str(parent))
    batch = next(iter(trainer.get_train_dataloader()))
    reference = reference_of(trainer, batch)
    assert torch.equal(policy_of(trainer, batch), reference)
    with torch.no_grad(), trainer.model.disable_adapter():
        bare = policy_of(trainer, batch)
    assert float((bare - reference).abs().min()) > 0.1, "never the bare base"
    trainer.train()
    first, *_, last = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == 0
    assert last["rewards/margins"] > 0
    assert torch.equal(reference_of(trainer, batch), reference), "it stays where it is"
    assert not torch.equal(policy_of(trainer, batch), reference)


def test_upstreams_own_reference_is_another(started, tmp_path):
    """The day this fails, TRL copies rows of added tokens too: `added_as_copies` can go."""
    base, parent = started
    ours = trainer_of(base, tmp_path / "ours", start_from=str(parent))
    model, words = toolkit.load(parent, device="cpu")
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name or "delta" in name)
    args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, report_to=[])
    theirs = DPOTrainer(model, args=args, train_dataset=PLAIN, processing_class=words)
    batch = next(iter(ours.get_train_dataloader()))
    assert float((reference_of(theirs, batch) - reference_of(ours, batch)).abs().max()) > 1e-3


PLAIN = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])


def test_the_base_is_the_reference_of_a_fresh_adapter(untied_base, tmp_path):
    trainer = trainer_of(untied_base, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad(), trainer.model.disable_adapter():
        bare = policy_of(trainer, batch)
    assert_close(reference_of(trainer, batch), bare, tolerance=1e-4)


def test_only_the_policy_moves(started_untied, tmp_path):
    base, parent = started_untied
    trainer = trainer_of(base, tmp_path, start_from=str(parent))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.requires_grad == (".default" in name), name


@pytest.mark.parametrize("keys", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_one_adapter_is_left(keys, started, tmp_path):
    base, parent = started
    result = dpo(base, tmp_path, start_from=str(parent), eval_dataset=PAIRS[:5], **keys)
    assert result.manifest["verification"]["largest_difference"] < 1e-4
    assert not (tmp_path / "ref").exists()
    assert not any(path.name == "ref" for path in tmp_path.rglob("*"))
    found = load_file(tmp_path / "adapter_model.safetensors")
    held = load_file(parent / "adapter_model.safetensors")
    assert found.keys() == held.keys()
    assert all(not torch.equal(found[key], held[key]) for key in found)
    assert result.metrics["eval_rewards/accuracies"] > 0.5
    assert {"eval_rewards/margins", "eval_loss"} <= result.metrics.keys()
    manifest = json.loads((tmp_path / "stage.json").read_text())
    assert manifest["pairs"].keys() == {"train", "eval"}


def test_the_reference_may_be_computed_before(started, tmp_path):
    base, parent = started
    one = dpo(base, tmp_path / "one", start_from=str(parent))
    other = dpo(base, tmp_path / "other", start_from=str(parent), precompute_ref_log_probs=True)
    weights = [
        load_file(result.output_dir / "adapter_model.safetensors") for result in (one, other)
    ]
    for key, value in weights[0].items():
        assert_close(weights[1][key], value, tolerance=1e-4, name=key)


def test_what_is_loaded_is_what_was_trained(started, tmp_path):
    base, parent = started
    trainer = trainer_of(base, tmp_path / "x", start_from=str(parent))
    trainer.train()
    probe = [[5, 6, 7, 257, 8, 9]]
    expected = log_probabilities(trainer.model, probe)
    result = dpo(base, tmp_path / "out", start_from=str(parent))
    model, _ = toolkit.load(result.output_dir, device="cpu")
    assert_close(log_probabilities(model, probe)[0], expected[0], tolerance=1e-5)


def test_interrupted_and_resumed_is_uninterrupted(started, tmp_path, capsys):
    base, parent = started
    keys = {"start_from": str(parent), "save_steps": 1, "save_strategy": "steps", "max_steps": 3}
    whole = dpo(base, tmp_path / "whole", **keys)
    run = tmp_path / "run"
    dpo(base, run, **keys)
    interrupt(run, "checkpoint-3", "checkpoint-2")
    capsys.readouterr()
    resumed = dpo(base, run, **keys)
    assert "resuming from" in capsys.readouterr().out
    assert_same(whole, resumed)
    for key in ("rewards/margins", "logps/chosen"):
        assert resumed.metrics[key] == pytest.approx(whole.metrics[key], abs=1e-6), key


def test_four_bit_starts_at_its_reference_and_keeps_its_precision(tmp_path):
    """TRL rounds the policy to bfloat16 over such a base, after it has copied it."""
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    keys = {"load_in_4bit": True}
    sft = toolkit.sft(
        model=str(base), train_dataset=tiny.ROWS, max_steps=4, learning_rate=2e-2, lora_r=4,
        output_dir=str(tmp_path / "sft"), **keys,
    )  # fmt: skip
    trainer = trainer_of(base, tmp_path / "out", start_from=str(sft.output_dir), **keys)
    held = load_file(sft.output_dir / "adapter_model.safetensors")
    state = dict(trainer.model.named_parameters())
    for key, tensor in held.items():
        name = key.replace(".weight", ".default.weight")
        assert torch.equal(state[name if name in state else f"{key}.default"], tensor), key
    batch = next(iter(trainer.get_train_dataloader()))
    assert torch.equal(policy_of(trainer, batch), reference_of(trainer, batch))


def test_keys_reach_upstream(tiny_base, tmp_path):
    trainer = trainer_of(tiny_base, tmp_path, beta=0.5, loss_type=["ipo"], label_smoothing=0.1)
    assert (trainer.beta, trainer.loss_types, trainer.label_smoothing) == (0.5, ["ipo"], 0.1)
    trainer.train()
    with pytest.raises(RecipeError, match="Label smoothing must be greater than 0"):
        trainer_of(tiny_base, tmp_path / "x", loss_type=["exo_pair"])


def test_the_tokens_are_ours(tiny_base, tmp_path):
    """The completions are what inference must produce, with the stop token, and nothing else."""
    trainer = trainer_of(tiny_base, tmp_path)
    words = trainer.processing_class
    for row, pair in zip(PAIRS, trainer.train_dataset, strict=True):
        prompt = words.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert words.decode(pair["prompt_ids"]) == prompt
        for name in ("chosen", "rejected"):
            assert words.decode(pair[f"{name}_ids"]) == row[name][0]["content"] + "<|im_end|>"


def test_several_pairs_of_a_prompt_are_told(tiny_base, tmp_path, capsys):
    trainer_of(tiny_base, tmp_path, train_dataset=RANKED)
    assert "in dpo every pair counts the same" in " ".join(capsys.readouterr().out.split())
    trainer_of(tiny_base, tmp_path)
    assert "counts the same" not in capsys.readouterr().out


def test_a_lent_model_comes_back_as_it_was(untied_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(untied_base)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = dpo(None, tmp_path, model=model)
    assert result.manifest["verification"]["verified"] == "resident_base"
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("keys", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_a_whole_model_has_the_base_as_its_reference(keys, tiny_base, tmp_path):
    result = dpo(
        tiny_base, tmp_path, use_peft=False, learning_rate=1e-3, eval_dataset=PAIRS[:4], **keys
    )
    assert result.manifest["verification"]["verified"] == "fresh_load"
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.metrics["eval_rewards/margins"] > 0
