"""Numbers that are not finite stop training before the optimizer's step; what was good stays."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl import GRPOTrainer

import toolkit
from tests import preferences, tiny
from tests.tiny_ppo import odd, quiet
from toolkit.errors import HubError, RecipeError, TrainingError
from toolkit.models.finite import not_finite
from toolkit.stages import guards, ppo_trainer
from toolkit.stages.dpo import TokenDPOTrainer
from toolkit.stages.ppo_trainer import PPOTrainer
from toolkit.stages.reward_trainer import WeightedRewardTrainer
from toolkit.stages.sft_trainer import TokenExactSFTTrainer
from toolkit.stages.signals import StopRequest

KEYS = {
    "lora_r": 4, "max_steps": 3, "save_steps": 1, "save_strategy": "steps", "logging_steps": 1,
    "per_device_train_batch_size": 4, "learning_rate": 1e-2,
}  # fmt: skip


def poisoned(kind, at, value=float("nan")):
    """A subclass of a trainer whose loss is spoilt from a step on."""

    class Poisoned(kind):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * value if self.state.global_step >= at else loss

    return Poisoned


class Keep(TrainerCallback):
    """Keeps the weights as they are when training stops, and at the start of the last step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.model = model
        self.before = self.weights()

    def weights(self):
        return {key: w.detach().clone() for key, w in self.model.named_parameters()}


def refused(stage, base, rows, directory, **keys):
    """The one line of a run that must stop, the weights being what they were before the step."""
    kept = Keep()
    with pytest.raises(TrainingError) as failure:
        getattr(toolkit, stage)(
            model_name_or_path=str(base), dataset_name=str(rows), output_dir=str(directory),
            callbacks=[kept], **KEYS | keys,
        )  # fmt: skip
    after = kept.weights()
    assert all(torch.equal(kept.before[key], after[key]) for key in after)
    assert not (directory / "stage.json").exists()
    return str(failure.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value, tiny_base, chats, tmp_path):
    run = tmp_path / "run"
    kind = poisoned(TokenExactSFTTrainer, 1, value)
    said = refused("sft", tiny_base, chats, run, trainer_class=kind)
    assert f"step 2 of 3: the loss is {value} ({chats.name} row " in said.replace(
        f"{tmp_path}/", ""
    )
    assert said.count("row") == 5, "four rows of the batch, and where to look at them"
    assert f"the last checkpoint is {run / 'checkpoint-1'}" in said
    assert not_finite(load_file(run / "checkpoint-1" / "adapter_model.safetensors").items()) is None
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "loss" in entry] == [1]
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 5)
    assert status["error"]["message"] == said
    assert "TrainingError" in (run / "failure.log").read_text()


def test_the_rows_that_are_named_are_those_of_the_batch(tiny_base, chats, tmp_path):
    seen = []

    class Seen(poisoned(TokenExactSFTTrainer, 0)):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.extend(self.processing_class.batch_decode(inputs["input_ids"]))
            return super().training_step(model, inputs, *args, **kwargs)

    said = refused("sft", tiny_base, chats, tmp_path / "run", trainer_class=Seen)
    told = said.partition("(")[2].partition(")")[0].split(", ")
    rows = sorted(int(words.rpartition(" ")[2]) for words in told)
    numbers = sorted(int(text.partition("Question ")[2].partition(":")[0]) + 1 for text in seen)
    assert rows == numbers


def test_a_gradient_that_is_not_finite(tiny_base, chats, tmp_path):
    class Spoils(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                weight = next(w for w in model.parameters() if w.requires_grad)
                weight.register_hook(lambda grad: grad * float("inf"))

    run = tmp_path / "run"
    kept = Keep()
    with pytest.raises(
        TrainingError, match=r"step 2 of 3: the gradient is (nan|inf) \(.*row"
    ) as failure:
        toolkit.sft(
            model_name_or_path=str(tiny_base), dataset_name=str(chats), output_dir=str(run),
            callbacks=[kept, Spoils()], **KEYS,
        )  # fmt: skip
    assert "checkpoint-1" in str(failure.value)
    assert all(torch.equal(kept.before[key], after) for key, after in kept.weights().items())


def test_weights_that_are_not_finite_replace_no_checkpoint(tiny_base, chats, tmp_path):
    class Spoils(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                weight = next(w for w in model.parameters() if w.requires_grad)
                weight.data.view(-1)[0] = float("inf")

    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="step 2: a trained weight is not finite after it"):
        toolkit.sft(
            model_name_or_path=str(tiny_base), dataset_name=str(chats), output_dir=str(run),
            callbacks=[Spoils()], save_total_limit=1, **KEYS,
        )  # fmt: skip
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("stage", "kind"), [("reward", WeightedRewardTrainer), ("dpo", TokenDPOTrainer)]
)
def test_pairs_are_named(stage, kind, tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "pairs.jsonl", preferences.PAIRS[:8])
    keys = {"trainer_class": poisoned(kind, 1), "per_device_train_batch_size": 2}
    said = refused(stage, tiny_base, rows, tmp_path / "run", **keys)
    assert "step 2 of 3: the loss is nan (" in said
    assert "pairs.jsonl row " in said


@quiet
@pytest.mark.parametrize("what", ["grpo", "ppo", "ppo's value"])
def test_rollouts_are_named(what, tiny_base, tmp_path, monkeypatch):
    rows = tiny.save_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(8)])
    stage, _, value = what.partition("'")
    keys = {"reward_funcs": [odd], "max_completion_length": 4, "num_generations": 2}
    if value:  # in the second step
        losses, true = iter([1.0, float("nan")]), ppo_trainer.clipped_value_loss

        def spoilt(*args):
            loss, clipped = true(*args)
            return loss * next(losses), clipped

        monkeypatch.setattr(ppo_trainer, "clipped_value_loss", spoilt)
    else:
        keys["trainer_class"] = poisoned(GRPOTrainer if stage == "grpo" else PPOTrainer, 1)
    said = refused(stage, tiny_base, rows, tmp_path / "run", **keys)
    assert "step 2 of 3: the loss is nan (" in said
    assert "prompts.jsonl row " in said
    assert "the last checkpoint is" in said


def test_the_device_is_waited_for_once_in_a_step(monkeypatch):
    """However many micro batches a step has: each wait is a pause of the device."""
    fetched = []
    for name in ("tolist", "item", "__float__", "__bool__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, own=own: [fetched.append(own), own(self)][1]
        )
    weight = torch.nn.Parameter(torch.ones(3))
    guard = guards.Guard(None, StopRequest())
    step = guard.watched(lambda model, inputs: (weight * inputs["input_ids"]).sum())
    for _ in range(4):
        step(None, {"input_ids": torch.ones(3)}).backward()
    guard.noted(lambda model: torch.ones(()))(None)
    guard.on_pre_optimizer_step(None, None, None)
    assert [own.__name__ for own in fetched] == ["tolist"]
    assert guard.batches == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_among_many(dtype):
    good = torch.ones(3, 5, dtype=dtype)
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = good.clone()
        bad[2, 4] = value
        assert not_finite([("good", good), ("bad", bad)]) == "bad"
    whole = torch.ones(3, dtype=torch.uint8)
    assert not_finite([("good", good), ("whole", whole), ("empty", good[:0])]) is None


def spoil(folder):
    """Put an infinity into the weights of a folder."""
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights[sorted(weights)[0]].view(-1)[-1] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})


def test_a_base_and_an_adapter_with_an_infinity_are_refused(tiny_base, chats, tmp_path):
    keys = {"dataset_name": str(chats), **KEYS, "max_steps": 1}
    base = shutil.copytree(tiny_base, tmp_path / "base")
    first = toolkit.sft(model_name_or_path=str(base), output_dir=str(tmp_path / "one"), **keys)
    adapter = shutil.copytree(first.output_dir, tmp_path / "adapter")
    for record in ("stage.json", "proof.json"):
        (adapter / record).unlink()
    spoil(adapter)
    holds = "holds NaN or infinity"
    with pytest.raises(RecipeError, match=f"{adapter}: weight .*{holds}"):
        toolkit.load(adapter)
    with pytest.raises(RecipeError, match=f"{adapter}: weight .*{holds}"):
        toolkit.sft(
            model_name_or_path=str(base), output_dir=str(tmp_path / "two"),
            start_from=str(adapter), **keys,
        )  # fmt: skip
    with pytest.raises(TrainingError, match=holds):
        toolkit.merge(adapter, tmp_path / "merged")
    from toolkit.artifacts import hub

    with pytest.raises(HubError, match=rf"adapter_model.safetensors: tensor .*{holds}"):
        hub.push(adapter, "me/mine", dry_run=True)
    spoil(base)
    with pytest.raises(RecipeError, match=f"{base}: weight .*{holds}"):
        toolkit.sft(model_name_or_path=str(base), output_dir=str(tmp_path / "three"), **keys)
    with pytest.raises(RecipeError, match=f"{base}: weight .*{holds}"):
        toolkit.load(base)
