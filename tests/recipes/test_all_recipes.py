"""Every recipe loads and builds the installed TRL's own configs; every launcher file is valid."""

import importlib
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from toolkit.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))
LAUNCHERS = sorted(path.name for path in (ROOT / "accelerate_configs").glob("*.yaml"))

# The module is named because TRL exports these two from different places.
UPSTREAM = {
    "SFTConfig": "trl",
    "ModelConfig": "trl",
    "ScriptArguments": "trl",
}


def header(recipe: str) -> str:
    """The comment block that a recipe begins with."""
    lines = (ROOT / recipe).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_there_are_recipes_and_launchers():
    assert "recipes/quickstart.yaml" in RECIPES
    assert len(RECIPES) >= 4
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
        for owner, module in UPSTREAM.items():
            if owner == "SFTConfig" and stage.stage != "sft":
                continue
            arguments = dict(stage.arguments(owner))
            if owner == "SFTConfig":
                # a test machine may have no GPU; what is checked is that every word is TRL's
                arguments |= {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True}
            built = getattr(importlib.import_module(module), owner)(**arguments)
            for key, value in arguments.items():
                assert getattr(built, key) == value or key == "report_to", (key, value)


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
