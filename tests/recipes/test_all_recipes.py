"""Every recipe loads and builds the installed TRL's own configs; every launcher file is valid."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from toolkit.recipe import load_recipe
from toolkit.recipe.keys import TRAINING
from toolkit.stages.arguments import build_arguments
from toolkit.stages.ppo import ppo_config
from toolkit.stages.ppo_config import PPOConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))
LAUNCHERS = sorted(path.name for path in (ROOT / "accelerate_configs").glob("*.yaml"))

PPO = {field.name for field in fields(PPOConfig)}
# PPO's keys are GRPO's and a few more; what else trains has upstream's own configuration.
CONFIGURATIONS = {
    "pretrain": transformers.TrainingArguments,
    "sft": trl.SFTConfig,
    "reward": trl.RewardConfig,
    "dpo": trl.DPOConfig,
    "grpo": trl.GRPOConfig,
}
BESIDE = {"ModelConfig": trl.ModelConfig, "ScriptArguments": trl.ScriptArguments}


def header(recipe: str) -> str:
    """The comment block that a recipe begins with."""
    lines = (ROOT / recipe).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_there_are_recipes_and_launchers():
    assert "recipes/quickstart.yaml" in RECIPES
    named = {Path(recipe).stem for recipe in RECIPES}
    assert {"reward_lora", "dpo_lora", "grpo_gsm8k", "ppo", "instructgpt", "r1_zero"} <= named
    assert {
        "cpu.yaml",
        "single_gpu.yaml",
        "ddp.yaml",
        "fsdp2.yaml",
        "zero2.yaml",
        "zero3.yaml",
    } <= set(LAUNCHERS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_the_real_configs(recipe, tmp_path):
    loaded = load_recipe(ROOT / recipe)
    assert loaded.stages
    for stage in loaded.stages:
        for owner, kind in BESIDE.items():
            assert_holds(kind(**stage.arguments(owner)), stage.arguments(owner))
        if stage.stage == "ppo":
            own = {key: value for key, value in stage.arguments("toolkit").items() if key in PPO}
            built: Any = ppo_config(stage, tmp_path)
            assert_holds(built, stage.arguments("GRPOConfig") | own)
        elif stage.stage in TRAINING:
            kind = CONFIGURATIONS[stage.stage]
            built = build_arguments(stage, kind, tmp_path)
            assert_holds(built, stage.arguments(kind.__name__))


def assert_holds(built: Any, arguments: dict[str, Any]) -> None:
    """What a configuration was built of is in it; a device holds no more than a step sees."""
    for key, value in arguments.items():
        if key == "per_device_train_batch_size":
            assert 0 < built.per_device_train_batch_size <= value
        elif key != "report_to":
            assert getattr(built, key) == value, key


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_what_it_is_how_to_launch_it_and_what_came_out(recipe):
    top = header(recipe)
    assert f"toolkit run {recipe}" in top
    assert "Result:" in top
    for word in top.split():
        if word.startswith("accelerate_configs/"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_in_the_table_of_recipes(recipe):
    assert f"({Path('..') / recipe})".replace("\\", "/") in (
        ROOT / "docs" / "recipes.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launcher_parses_with_accelerate(launcher):
    path = ROOT / "accelerate_configs" / launcher
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes >= 1
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.distributed_type.value == written["distributed_type"]
