"""Stage reward: what is trained, that a prompt counts once, and what is reported of held-out pairs."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.preferences import PAIRS, RANKED
from tests.unit.test_stage_resume import assert_same, interrupt, logged
from toolkit.artifacts.checkpoint import seal
from toolkit.errors import RecipeError, TrainingError
from toolkit.models.reward import load_reward_model
from toolkit.stages.reward_trainer import WeightedRewardTrainer, pair_losses, scored_pairs

KEYS = {
    "learning_rate": 5e-3, "lr_scheduler_type": "constant",
    "max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "seed": 3,
}  # fmt: skip
HEAD = "base_model.model.score.weight"


def given(base, directory, keys):
    data = {"train_dataset": PAIRS, "model": str(base), "output_dir": str(directory)}
    fresh = {} if "start_from" in keys else {"lora_r": 4, "lora_dropout": 0.0}
    return data | KEYS | fresh | keys


def reward(base, directory, **keys):
    return toolkit.reward(**given(base, directory, keys))


def trainer_of(base, directory, **keys):
    return toolkit.build("reward", **given(base, directory, keys))


def weights_of(result):
    return load_file(result.output_dir / "adapter_model.safetensors")


def test_the_adapter_and_its_head_move_and_the_base_does_not(tiny_base, tmp_path):
    trainer = trainer_of(tiny_base, tmp_path)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert any("score" in n for n, p in trainer.model.named_parameters() if p.requires_grad)


def test_it_learns_and_says_how_well(tiny_base, tmp_path, capsys):
    result = reward(tiny_base, tmp_path, eval_dataset=PAIRS[:8], max_steps=30)
    assert result.metrics["eval_accuracy"] == 1.0
    assert result.metrics["eval_loss"] < 0.3
    found = result.metrics["pairs"]
    assert (found["pairs"], found["prompts"], found["accuracy"]) == (8, 8, 1.0)
    printed = capsys.readouterr().out
    table = printed[printed.index("held-out pairs: 8 of 8") : printed.index("every held-out")]
    assert max(map(len, table.splitlines())) <= 80
    assert "scores differ by at most" in " ".join(printed.split())
    manifest = json.loads((tmp_path / "stage.json").read_text())
    assert manifest["metrics"]["pairs"] == found
    assert manifest["verification"]["largest_difference"] < 1e-5
    assert "pairs.jsonl" in manifest["outputs"]


def test_every_held_out_pair_is_written_with_its_scores(tiny_base, tmp_path):
    result = reward(tiny_base, tmp_path, eval_dataset=PAIRS[:5])
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    model, words = load_reward_model(str(tmp_path))
    assert len(lines) == 5
    for line, row in zip(lines, PAIRS, strict=False):
        assert row["chosen"][0]["content"] in line["chosen"]
        for name in ("chosen", "rejected"):
            ids = words(line["prompt"] + line[name], add_special_tokens=False)["input_ids"]
            assert model.score([ids])[0] == pytest.approx(line[f"{name}_score"], abs=1e-5)
    margins = [line["chosen_score"] - line["rejected_score"] for line in lines]
    assert result.metrics["eval_margin"] == pytest.approx(sum(margins) / 5, abs=1e-6)


def test_an_answer_in_many_held_out_pairs_is_read_once(tiny_base, tmp_path):
    trainer = trainer_of(
        tiny_base, tmp_path, train_dataset=RANKED, eval_dataset=RANKED[1:2],
        per_device_eval_batch_size=8,
    )  # fmt: skip
    read = []
    for name, weight in trainer.model.named_parameters():
        if "score" in name:  # it starts at zero, where all scores are equal
            torch.nn.init.normal_(weight)
    trainer.model.get_base_model().register_forward_pre_hook(
        lambda model, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
    )
    trainer.evaluate()
    pairs = [(pair["chosen"], pair["rejected"]) for pair in trainer.held_out]
    assert len(pairs) == len(set(pairs)) == 3  # of three answers
    assert [len(ids) for ids in read] == [3]
    (best, middle), (again, worst), (other, last) = pairs
    assert (best, middle, worst) == (again, other, last)


def test_without_held_out_pairs_it_says_so(tiny_base, tmp_path, capsys):
    result = reward(tiny_base, tmp_path, max_steps=1)
    assert "no pair was held out" in capsys.readouterr().out
    assert "pairs" not in result.metrics
    assert not (tmp_path / "pairs.jsonl").exists()


def test_the_loss_is_upstreams(tiny_base, tmp_path):
    """Pairs of one prompt each weigh 1: the loss of TRL's own trainer, to the last digit it has."""
    from trl import RewardTrainer

    trainer = trainer_of(tiny_base, tmp_path)
    trainer.train()  # the head is no longer zero
    batch = next(iter(trainer.get_train_dataloader()))
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=4)
    theirs = RewardTrainer.compute_loss(
        trainer, trainer.model, {k: batch[k] for k in ("input_ids", "attention_mask")}
    )
    assert trainer.args.center_rewards_coefficient == 0.01
    assert_close(ours.detach(), theirs.detach(), tolerance=1e-6)


def test_pair_losses_by_hand():
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([0.0, 0.5])
    found = pair_losses(chosen, rejected, 0.01)
    wanted = [0.31326169 + 0.01 * 1.0, 1.31326169 + 0.0]
    assert_close(found, wanted, tolerance=1e-6)
    assert_close(pair_losses(chosen, rejected, None), -logsigmoid(chosen - rejected), tolerance=0.0)


def test_a_prompt_counts_once(tiny_base, tmp_path):
    """Two prompts, one with three ranked answers (three pairs), one with two (one pair)."""
    trainer = trainer_of(tiny_base, tmp_path, train_dataset=RANKED[:2], max_steps=8)
    rows = trainer.train_dataset
    assert len(rows) == 4
    by_prompt = {}
    for prompt, weight in zip(rows["prompt_index"], rows["weight"], strict=True):
        by_prompt[prompt] = by_prompt.get(prompt, 0) + weight
    assert sorted(by_prompt.values()) == pytest.approx([2.0, 2.0])
    trainer.train()
    batch = trainer.data_collator([rows[index] for index in range(4)])
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=4)
    with torch.no_grad():
        scores = trainer.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits[:, 0]
    each = pair_losses(*scores.chunk(2), 0.01)
    of = [each[torch.tensor(rows["prompt_index"]) == prompt].mean() for prompt in by_prompt]
    assert_close(loss.detach(), sum(of) / 2, tolerance=1e-6)
    assert abs(float(each.mean() - loss.detach())) > 1e-4, "the weights must matter here"


def test_the_first_loss_is_that_of_a_coin(tiny_base, tmp_path):
    trainer = trainer_of(tiny_base, tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert trainer.state.log_history[0]["accuracy"] == 0.5


def test_it_starts_from_an_sft_adapter(tiny_base, tmp_path):
    sft = toolkit.sft(
        model=str(tiny_base), train_dataset=tiny.ROWS, output_dir=str(tmp_path / "sft"), lora_r=4,
        max_steps=3, learning_rate=1e-2,
    )  # fmt: skip
    keys = {"start_from": str(sft.output_dir), "eval_dataset": PAIRS[:6]}
    started = trainer_of(tiny_base, tmp_path / "x", **keys)
    parent = weights_of(sft)
    state = dict(started.model.named_parameters())
    for key, tensor in parent.items():
        name = key.replace(".weight", ".default.weight")
        assert torch.equal(state[name if name in state else f"{key}.default"], tensor), key
    result = reward(tiny_base, tmp_path / "reward", max_steps=20, **keys)
    found = weights_of(result)
    assert found.keys() == parent.keys() | {HEAD}
    assert any(not torch.equal(found[key], parent[key]) for key in parent)
    assert result.metrics["eval_accuracy"] == 1.0
    again = reward(
        tiny_base, tmp_path / "again", max_steps=1, learning_rate=1e-9,
        start_from=str(result.output_dir), eval_dataset=PAIRS[:6],
    )  # fmt: skip
    assert_close(weights_of(again)[HEAD], found[HEAD], tolerance=1e-6)
    assert again.metrics["eval_margin"] == pytest.approx(result.metrics["eval_margin"], abs=1e-4)


def test_other_stages_do_not_start_from_a_judge(tiny_base, tmp_path):
    judge = reward(tiny_base, tmp_path / "reward", max_steps=1)
    with pytest.raises(RecipeError, match="judges and does not speak; name the adapter of a"):
        toolkit.sft(
            model=str(tiny_base), train_dataset=tiny.ROWS, output_dir=str(tmp_path / "sft"),
            start_from=str(judge.output_dir), max_steps=1,
        )  # fmt: skip


RESUME = {
    "max_steps": 4, "save_steps": 1, "save_strategy": "steps", "lora_dropout": 0.1,
    "disable_dropout": False,
}  # fmt: skip


def test_interrupted_and_resumed_is_uninterrupted(tiny_base, tmp_path, capsys):
    keys = RESUME | {"eval_dataset": PAIRS[:6]}
    whole = reward(tiny_base, tmp_path / "whole", **keys)
    run = tmp_path / "run"
    reward(tiny_base, run, **keys)
    interrupt(run, "checkpoint-4", "checkpoint-3")
    capsys.readouterr()
    resumed = reward(tiny_base, run, **keys)
    assert "resuming from" in capsys.readouterr().out
    assert_same(whole, resumed)
    assert logged(run) == logged(tmp_path / "whole")
    assert resumed.metrics["pairs"] == whole.metrics["pairs"]
    assert float(weights_of(whole)[HEAD].abs().max()) > 0


def test_after_the_last_step_none_is_taken_again(tiny_base, tmp_path, capsys):
    keys = {"max_steps": 2, "eval_dataset": PAIRS[:6]}
    whole = reward(tiny_base, tmp_path / "whole", **keys)
    reward(tiny_base, tmp_path / "run", **keys)
    interrupt(tmp_path / "run")
    capsys.readouterr()
    again = reward(tiny_base, tmp_path / "run", **keys)
    assert "training had ended" in capsys.readouterr().out
    assert_same(whole, again)
    assert again.metrics["pairs"] == whole.metrics["pairs"]


def test_a_checkpoint_holds_the_head(tiny_base, tmp_path):
    """A run from scratch ends the same, so only a checkpoint with another head can tell."""
    from safetensors.torch import save_file

    before = weights_of(reward(tiny_base, tmp_path, **RESUME))[HEAD]
    interrupt(tmp_path, "checkpoint-4", "checkpoint-3")
    file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {HEAD: tensors[HEAD] + 1.0}, file)
    seal(file.parent)
    after = weights_of(reward(tiny_base, tmp_path, **RESUME))[HEAD]
    assert float((after - before).mean()) > 0.9


def test_plain_libraries_give_the_reported_scores(tiny_base, tmp_path):
    reward(tiny_base, tmp_path, eval_dataset=PAIRS[:4], max_steps=10)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    _, words = load_reward_model(str(tmp_path))
    for line in map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines()):
        ids = words(line["prompt"] + line["chosen"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            score = float(plain(torch.tensor([ids])).logits)
        assert score == pytest.approx(line["chosen_score"], abs=1e-5)


def test_objects_from_python(tiny_base, tmp_path):
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    class Doubled(WeightedRewardTrainer):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    trainer = trainer_of(
        tiny_base, tmp_path, callbacks=[Count()], trainer_class=Doubled, max_steps=2
    )
    trainer.train()
    assert steps == [1, 2]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(2 * 0.693147, abs=1e-5)


def test_a_lent_classifier_comes_back_as_it_was(tiny_base, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1)
    before = copy.deepcopy(model.state_dict())
    head, settings = model.score, model.config.to_dict()
    result = reward(None, tmp_path, model=model, eval_dataset=PAIRS[:4], max_steps=2)
    assert result.manifest["verification"]["verified"] == "resident_base"
    assert model.score is head
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config.to_dict() == settings
    assert "forward" not in vars(model)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not torch.equal(weights_of(result)[HEAD], before["score.weight"])


def test_a_lent_causal_model_is_refused(tiny_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with pytest.raises(RecipeError, match="expected a sequence classifier with one label"):
        reward(None, tmp_path, model=model)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_whole_model_is_trained_too(tiny_base, tmp_path):
    result = reward(
        tiny_base, tmp_path, use_peft=False, eval_dataset=PAIRS[:6], max_steps=30,
    )  # fmt: skip
    assert result.manifest["verification"]["verified"] == "fresh_load"
    assert result.metrics["eval_accuracy"] == 1.0
    model, _ = load_reward_model(str(tmp_path))
    assert float(model.head.abs().max()) > 0


@pytest.mark.parametrize(("keys", "closer"), [({"load_in_4bit": True}, 1e-5), ({}, 1e-2)], ids=str)
def test_over_a_base_in_fewer_bits(keys, closer, tmp_path):
    """A base in bfloat16, plain and in four bits, below an adapter in float32."""
    path = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16").save_pretrained(path)
    result = reward(path, tmp_path / "out", eval_dataset=PAIRS[:6], max_steps=16, **keys)
    assert result.manifest["verification"]["largest_difference"] < closer
    assert result.metrics["eval_accuracy"] == 1.0
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(result).values())


def test_a_length_judge_is_named(tiny_base, tmp_path, capsys):
    """Trained where the longer answer is always chosen, held out where half are shorter."""

    def by_length(index, *, longer_is_chosen):
        long, short = "word " * (6 + index % 3), "word " * (1 + index % 3)
        chosen, rejected = (long, short) if longer_is_chosen else (short, long)
        return {"prompt": f"Say {index}: ", "chosen": chosen, "rejected": rejected}

    train = [by_length(index, longer_is_chosen=True) for index in range(24)]
    held_out = [by_length(index, longer_is_chosen=index % 2 == 0) for index in range(40, 52)]
    result = reward(
        tiny_base, tmp_path, train_dataset=train, eval_dataset=held_out, max_steps=40,
        learning_rate=1e-2,
    )  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert result.metrics["pairs"]["length_bias"] == "longer"
    assert "warning: this reward model merely likes long answers" in printed


def test_scores_that_are_not_finite_are_no_result():
    """Weights that are finite can give them all the same."""
    columns = {"chosen_ids": [[1]], "rejected_ids": [[2]], "prompt_index": [0], "weight": [1.0]}
    with pytest.raises(TrainingError, match=r"held-out pair 1 has the scores nan and 0.0; lower"):
        scored_pairs(Dataset.from_dict(columns), {0: (float("nan"), 0.0)})


def test_pairs_longer_than_the_base_are_refused(tiny_base, tmp_path):
    long = {**PAIRS[0], "chosen": [{"role": "assistant", "content": "long " * 200}]}
    with pytest.raises(RecipeError, match="the base has 512 positions; write max_length: 512"):
        reward(tiny_base, tmp_path, train_dataset=[*PAIRS, long], max_length=None)
