"""The doctor: each fault planted in a real training of a tiny model is named, a healthy one is not."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import toolkit
from tests import hacked, tiny
from tests.preferences import PAIRS
from tests.tiny_ppo import quiet
from toolkit.errors import TrainingError
from toolkit.recipe import load_recipe, recipe_from_keywords
from toolkit.stages import symptoms
from toolkit.stages.diagnoses import Diagnoses
from toolkit.stages.finish import train
from toolkit.stages.symptoms import BEFORE, RULES, Training

pytestmark = quiet
ROOT = Path(__file__).parents[2]
HEALTHY = [
    json.loads(line)
    for line in (ROOT / "tests" / "golden" / "healthy_logs.jsonl").read_text().splitlines()
]
"""What the quickstart's stages logged over seeds, thinned out, with the numbers that rules read."""
OF_STAGE = {
    "sft": {"learning_rate": 3e-3, "vocabulary": 902, "masked": 0.6, "format": "messages"},
    "reward": {"learning_rate": 1.5e-3},
    "ppo": {"learning_rate": 6e-4, "beta": 0.05, "num_iterations": 2},
    "grpo": {"learning_rate": 5e-4},
}


def diagnosed(log, **known):
    """What all rules say of a log, line after line."""
    training = Training(**known)
    rules = BEFORE | RULES
    ends = range(1, len(log) + 1)
    return {name for name, rule in rules.items() for end in ends if rule(log[:end], training)}


@pytest.mark.parametrize("number", range(len(HEALTHY)))
def test_the_doctor_is_silent_on_healthy_runs(number):
    stage, log = HEALTHY[number]["stage"], HEALTHY[number]["log"]
    known = OF_STAGE[stage] | {"stage": stage, "max_steps": log[-1]["step"]}
    assert diagnosed(log, **known) == set()


def test_every_learning_rate_of_the_recipes_is_one_for_what_they_train():
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        for stage in load_recipe(path).stages:
            rate, adapter = stage.get("learning_rate"), stage.get("use_peft")
            if rate is not None:
                known = Training(stage=stage.stage, learning_rate=rate, adapter=bool(adapter))
                assert symptoms.rate_far_from_lora([], known) is None, f"{path}: {rate}"


def told(folder):
    """What was told of a run, by name, from its log."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found = [entry for entry in map(json.loads, lines) if "diagnosis" in entry]
    assert len({entry["diagnosis"] for entry in found}) == len(found), "each is told once"
    return {entry["diagnosis"]: entry for entry in found}


# rollouts


def always(text, stops=True):
    """A rollout_func: one completion for all."""

    def rollout(prompts, trainer):
        words = trainer.processing_class
        end = [words.eos_token_id] if stops else []
        return {
            "prompt_ids": [words(prompt).input_ids for prompt in prompts],
            "completion_ids": [words(text).input_ids + end for _ in prompts],
            "logprobs": None,
        }

    return rollout


def rollouts(base, folder, stage="grpo", **more):
    """Trains on rollouts; nothing but what is planted is wrong."""
    keys = hacked.keys(base, folder, max_steps=4, save_strategy="no", num_generations=4)
    keys |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "lora_alpha": 8}
    keys.pop("gold_funcs")
    with suppress(TrainingError):  # an adapter that has not moved is no result
        getattr(toolkit, stage)(**keys | more)
    return told(folder)


def test_rewards_that_are_equal_in_every_group_are_named_with_their_function(
    tiny_base, tmp_path, capsys
):
    def by_prompt(prompts, **columns):
        return [float(len(prompt)) for prompt in prompts]

    found = rollouts(tiny_base, tmp_path, reward_funcs=[by_prompt, hacked.odd], max_steps=3,
                     rollout_func=always("abc"), train_dataset=hacked.PROMPTS)  # fmt: skip
    message = found["equal_rewards"]["message"]
    assert "by_prompt (mean" in message
    assert "odd (mean" in message
    assert "no_gradient" not in found, "the cause is told, not its effect"
    assert capsys.readouterr().out.count("every advantage is 0") == 1


def test_a_reward_that_says_by_itself_that_it_is_constant_is_not_told_twice(
    tiny_base, tmp_path, capsys
):
    def nothing(prompts, **columns):
        return [0.0] * len(prompts)

    found = rollouts(tiny_base, tmp_path, reward_funcs=[nothing], max_steps=12, logging_steps=6)
    assert "no learning signal" in found["equal_rewards"]["message"]
    printed = capsys.readouterr().out
    assert printed.count("no learning signal") == 1
    assert "every advantage is 0" not in printed
    found = rollouts(tiny_base, tmp_path / "sooner", reward_funcs=[nothing], max_steps=12)
    assert "nothing (mean 0)" in found["equal_rewards"]["message"]
    assert "no learning signal" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:All reward functions returned None")
def test_answers_that_are_never_scored_never_parsed_and_never_end(tiny_base, tmp_path):
    def none(prompts, **columns):
        return [None] * len(prompts)

    data = [{"prompt": text["prompt"], "answer": "7"} for text in hacked.PROMPTS]
    found = rollouts(tiny_base, tmp_path, reward_funcs=["answer", none], train_dataset=data,
                     rollout_func=always("who knows ab", stops=False))  # fmt: skip
    assert "reward none could score none" in found["never_scored"]["message"]
    assert "does reward answer find an answer" in found["never_parsed"]["message"]
    assert "never produces <|endoftext|>" in found["never_stops"]["message"]
    assert "completions_cut" not in found


def test_completions_that_are_cut_and_a_policy_that_runs_away(tiny_base, tmp_path):
    found = rollouts(tiny_base, tmp_path, learning_rate=0.3, beta=1e-4, max_steps=8,
                     num_iterations=2, max_grad_norm=100.0)  # fmt: skip
    assert "are cut at max_completion_length 12" in found["completions_cut"]["message"]
    assert "write max_completion_length: 24" in found["completions_cut"]["message"]
    assert found["kl_explodes"]["value"] > 1
    assert found["clipped_away"]["value"] > 0.3
    assert "learning_rate 0.3 is over 0.01" in found["rate_far_from_lora"]["message"]


def test_a_policy_that_does_not_move(tiny_base, tmp_path):
    found = rollouts(tiny_base, tmp_path, learning_rate=1e-12, beta=0.1, max_steps=8,
                     num_iterations=2)  # fmt: skip
    assert "exactly 0 after" in found["kl_zero"]["message"]
    assert "raise learning_rate" in found["never_clipped"]["message"]
    assert found["rate_far_from_lora"]["value"] == 1e-12


class Sharpen(TrainerCallback):
    """Makes the policy certain of one token, whatever comes before it."""

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            model.get_base_model().model.norm.weight.mul_(1000)


def test_an_entropy_that_collapses(tiny_base, tmp_path):
    found = rollouts(tiny_base, tmp_path, max_steps=6, callbacks=[Sharpen()])
    assert "all samples are one" in found["entropy_collapsed"]["message"]


def test_a_critic_that_is_worse_than_a_constant(tiny_base, tmp_path):
    found = rollouts(tiny_base, tmp_path, "ppo", value_learning_rate=3.0, num_generations=1,
                     num_iterations=1, max_steps=9, cliprange_value=100.0,
                     train_dataset=hacked.PROMPTS * 2)  # fmt: skip
    assert "raise value_learning_rate" in found["critic_explains_nothing"]["message"]
    assert found["critic_explains_nothing"]["value"] < 0


# rows that are there


def fixed_rows(stage, folder, spoil=None, *, dead=False, **keys):
    """Trains on rows, of which `spoil` changes each; a dead adapter has nothing but zeros."""
    given = {
        "output_dir": str(folder), "lora_r": 4, "max_steps": 6, "logging_steps": 1, "seed": 0,
        "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none",
        "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    } | keys  # fmt: skip
    trainer = toolkit.build(stage, **given)
    if spoil is not None:
        trainer.train_dataset = trainer.train_dataset.map(spoil)
    for name, weight in trainer.model.named_parameters() if dead else ():
        weight.requires_grad_("lora_" in name)
        weight.data.mul_("lora_" not in name)
    recipe = recipe_from_keywords(stage, **given).stages[0]
    folder.mkdir(exist_ok=True)
    with suppress(TrainingError):  # a loss of no token is no number
        train(trainer, recipe, format="messages")
    return told(folder)


def test_a_base_that_knows_nothing_and_questions_that_are_trained(tiny_base, chats, tmp_path):
    base = {"model_name_or_path": str(tiny_base), "dataset_name": str(chats)}
    found = fixed_rows("sft", tmp_path / "run", **base, learning_rate=1e-6,
                       assistant_only_loss=False)  # fmt: skip
    assert "= 5.56" in found["knows_nothing"]["message"]
    assert "assistant_only_loss: true" in found["none_masked"]["message"]
    assert "as 0.0002" in found["rate_far_from_lora"]["message"]
    assert found.keys() == {"knows_nothing", "none_masked", "rate_far_from_lora"}


def test_an_adapter_that_gets_no_gradient(tiny_base, chats, tmp_path):
    base = {"model_name_or_path": str(tiny_base), "dataset_name": str(chats)}
    found = fixed_rows("sft", tmp_path / "run", dead=True, **base)
    assert "the gradient is exactly 0 in the last 3" in found["no_gradient"]["message"]


def test_sequences_without_a_trained_token(tiny_base, chats, tmp_path):
    def unlabelled(row):
        return row | {"labels": [-100] * len(row["labels"])}

    base = {"model_name_or_path": str(tiny_base), "dataset_name": str(chats)}
    found = fixed_rows("sft", tmp_path / "run", unlabelled, **base)
    assert "masked share 1" in found["all_masked"]["message"]


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_pairs_of_one_answer(stage, tiny_base, tmp_path):
    def one_answer(row):
        return row | {"rejected_ids": row["chosen_ids"]}

    path = tiny.save_rows(tmp_path / "pairs.jsonl", PAIRS[:8])
    base = {"model_name_or_path": str(tiny_base), "dataset_name": str(path)}
    found = fixed_rows(stage, tmp_path / "run", one_answer, **base)
    assert found["chosen_is_rejected"]["value"] == 1
    assert "nothing is learnt of the pairs" in found["no_margin"]["message"]
    healthy = fixed_rows(stage, tmp_path / "healthy", **base)
    assert healthy == {}


def test_what_was_told_before_an_interruption_is_not_told_again(tmp_path):
    log = tmp_path / "log.jsonl"
    first = Diagnoses(log)
    first.tell("kl_zero", "…", 4, 0.0)
    first.tell("no_gradient", "…", 9, 0.0)
    log.write_text(log.read_text() + '{"step": 10, "diag')
    again = Diagnoses(log)
    again.resume(6)
    assert [one["name"] for one in again.for_manifest()] == ["kl_zero"]


def test_each_rule_can_speak_and_has_a_name_of_its_own():
    assert len(RULES) + len(BEFORE) == 18
    assert all(rule.__name__ == name for name, rule in (RULES | BEFORE).items())


@pytest.mark.parametrize(
    ("rule", "log", "known"),
    [
        ("entropy_collapsed", [{"entropy": 0.02}] + [{"entropy": 0.003}] * 3, {}),  # never was more
        ("completions_cut", [{"completions/clipped_ratio": s} for s in (0.9, 0.4, 0.9)], {}),
        ("never_clipped", [{"clip_ratio/region_mean": 0.0, "learning_rate": 1.0}] * 20, {}),
        ("critic_explains_nothing", [{"value/explained_variance": -1.0}] * 7, {}),
        ("kl_zero", [{"kl": 0.0, "learning_rate": 0.0}] * 9, {}),  # a long warm-up
        ("knows_nothing", [{"loss": 9.0, "step": 5}] * 3,
         {"stage": "pretrain", "vocabulary": 8000, "max_steps": 100}),
        ("no_margin", [{"margin": 0.0, "learning_rate": 1.0}] * 3, {"stage": "reward"}),
        ("rate_far_from_lora", [], {"learning_rate": 1e-6, "adapter": False}),
        ("none_masked", [], {"masked": 0.0, "format": "text"}),
    ],
)  # fmt: skip
def test_what_is_no_fault_yet(rule, log, known):
    known = {"stage": "grpo"} | known
    assert (RULES | BEFORE)[rule](log, Training(**known)) is None
