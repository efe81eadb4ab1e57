"""Every recipe loads and builds the installed TRL's own configs; every launcher file is valid."""

import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import _filter_args, prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

from toolkit import launching
from toolkit.recipe import load_recipe
from toolkit.recipe.keys import TRAINING
from toolkit.stages.arguments import build_arguments
from toolkit.stages.ppo import ppo_config
from toolkit.stages.ppo_config import PPOConfig

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "recipes" / "cluster"
RECIPES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path.parent != CLUSTER
)
LAUNCHERS = sorted(path.name for path in (ROOT / "accelerate_configs").glob("*.yaml"))

PPO = {field.name for field in fields(PPOConfig)}
# PPO's keys are GRPO's and a few more; what else trains has upstream's own configuration.
CONFIGURATIONS = {
    "pretrain": transformers.TrainingArguments,
    "sft": trl.SFTConfig,
    "rejection": trl.SFTConfig,
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
        "multi_node.yaml",
    } == set(LAUNCHERS)


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


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_accelerate_makes_of_a_launcher_what_its_file_says(launcher, monkeypatch):
    """As `accelerate launch` reads it, down to the environment that its processes are given."""
    path = ROOT / "accelerate_configs" / launcher
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    started: list[list[str]] = []
    monkeypatch.setattr(launching, "wait_for", lambda command, _: started.append(command) or 0)
    port = ["--main_process_port", "0"]
    assert launching.launch(["run", "x", "--accelerate", str(path), *port]) == 0
    words = started[0][3:]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    kinds = {"MULTI_GPU": "multi_gpu", "FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed", "NO": None}
    for kind, flag in kinds.items():
        assert flag is None or bool(getattr(args, flag)) == (kind == written["distributed_type"])
    assert args.num_processes == written["num_processes"]
    assert args.mixed_precision == written["mixed_precision"]
    if written["distributed_type"] in {"NO", "DEEPSPEED"}:
        for key, value in written.get("deepspeed_config", {}).items():
            assert getattr(args, key) == value
        return
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_MIXED_PRECISION"] == written["mixed_precision"]
    for key, value in written.get("fsdp_config", {}).items():
        name = {"fsdp_state_dict_type": "FSDP_STATE_DICT_TYPE"}.get(key, key.upper())
        assert environment[name].lower() == str(value).lower(), key
    given = _filter_args(args, get_args_parser(), ["--training_script", "x"])
    nodes, machines = given.nnodes.partition(":")[0], written["num_machines"]
    assert (int(nodes), int(given.nproc_per_node)) == (
        machines, written["num_processes"] // machines
    )  # fmt: skip
    if machines > 1:
        assert given.rdzv_backend == "c10d"
        assert given.rdzv_endpoint.startswith(f"{written['main_process_ip']}:")


def test_the_cluster_s_files_start_what_there_is():
    """Slurm's script and SkyPilot's task give the launcher flags that `--accelerate` hands on."""
    slurm = (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], check=True)
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text(encoding="utf-8"))
    assert load_recipe(ROOT / task["envs"]["RECIPE"]).stages
    for line in (slurm, task["run"]):
        commands = "\n".join(part for part in line.splitlines() if not part.startswith("#"))
        flags = set(re.findall(r"--([a-z_]+) ", commands))
        known = {"accelerate", "output_dir", *launching.OF_LAUNCHER}
        assert (
            {"num_machines", "num_processes", "machine_rank", "main_process_ip"} <= flags <= known
        )
        (config,) = re.findall(r"(?:--accelerate |CONFIG:-)(\w+)", line)
        assert launching.config_file(config).is_file()
