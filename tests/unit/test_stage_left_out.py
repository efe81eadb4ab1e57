"""What GRPO and PPO make of completions on which a reward failed."""

import json
import logging
import math

import pytest
import torch
from trl import GRPOTrainer

import toolkit
from tests import tiny_ppo
from tests.closeness import assert_close
from toolkit.stages.ppo_trainer import PPOTrainer

GIVEN = [1.0, math.nan, 3.0, 5.0]
PROMPTS = [{"prompt": "ab"}, {"prompt": "abc"}]
TOTAL = 4  # completions of one step


def judge(prompts, completions, **columns):
    return GIVEN[: len(prompts)]


def form(prompts, completions, **columns):
    return [0.0, 1.0, 0.0, 0.0]


async def later(prompts, completions, **columns):
    return GIVEN[: len(prompts)]


def trained(stage, base, folder, kind, **keys):
    seen = []

    class Watched(kind):
        def _generate_and_score_completions(self, inputs):
            seen.append(super()._generate_and_score_completions(inputs))
            return seen[-1]

    result = getattr(toolkit, stage)(
        model_name_or_path=str(base), output_dir=str(folder), lora_r=4, train_dataset=PROMPTS,
        max_steps=1, per_device_train_batch_size=TOTAL, num_generations=TOTAL, report_to="none",
        max_completion_length=6, logging_steps=1, save_strategy="no", trainer_class=Watched,
        on_reward_error="skip", max_reward_errors=1.0, **keys,
    )  # fmt: skip
    (line,) = [
        found
        for found in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        if "reward" in found
    ]
    return seen[0], line, result.manifest["rewards"]


@tiny_ppo.quiet
@pytest.mark.parametrize("function", [judge, later])
def test_a_group_is_compared_without_it(function, tiny_base, tmp_path, capsys):
    rollout, line, counts = trained(
        "grpo", tiny_base, tmp_path / "run", GRPOTrainer, reward_funcs=[form, function]
    )
    # of 1, 3 and 5; what the other reward says of the second is not compared with sums of two
    assert_close(rollout["advantages"], torch.tensor([-1.0, 0.0, 0.0, 1.0]), tolerance=1e-3)
    name = function.__name__
    assert line["reward"] == pytest.approx(3.0)
    assert line[f"rewards/{name}/mean"] == pytest.approx(3.0)
    assert line[f"rewards/{name}/failed"] == 0.25
    assert counts[name] == {"scored": 3, "unscored": 0, "failed": 1}
    assert counts["form"] == {"scored": 4, "unscored": 0, "failed": 0}
    said = " ".join(capsys.readouterr().out.split())
    assert f"reward {name} must return a finite number" in said
    assert f"reward {name}: 1 of 4 completions (25.0%) have no score because it failed" in said


@tiny_ppo.quiet
def test_ppo_learns_nothing_of_it(tiny_base, tmp_path):
    rollout, line, _ = trained(
        "ppo", tiny_base, tmp_path / "run", PPOTrainer, reward_funcs=[form, judge]
    )
    assert rollout["value_mask"].any(dim=1).tolist() == [True, False, True, True]
    assert not rollout["advantages"][1].any()
    assert line["reward"] == pytest.approx(3.0)


@tiny_ppo.quiet
def test_no_prompt_and_no_completion_stand_in_the_log(tiny_base, tmp_path, caplog):
    def silent(prompts, completions, **columns):
        return [None, 1.0, 2.0, 3.0]

    with caplog.at_level(logging.WARNING):
        _, _, counts = trained(
            "grpo", tiny_base, tmp_path / "run", GRPOTrainer, reward_funcs=[silent]
        )
    assert "All reward functions" not in caplog.text
    assert counts == {"silent": {"scored": 3, "unscored": 1, "failed": 0}}
