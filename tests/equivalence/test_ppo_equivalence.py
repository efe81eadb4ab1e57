"""One PPO training, many ways to compute it: each must give the same numbers and the same adapters."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests import tiny_ppo
from tests.closeness import assert_close
from tests.equivalence.ppo_processes import CASES, trained
from tests.launch import ROOT

pytestmark = [
    tiny_ppo.quiet,
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying:UserWarning"),
]
LOGGED = ("loss", "kl", "reward", "returns/mean", "value/mean", "value/loss", "reward_with_penalties",
          "value/explained_variance")  # fmt: skip


@pytest.fixture(scope="module")
def bases(tiny_base, untied_base) -> dict[str, str]:
    return {"tied": str(tiny_base), "untied": str(untied_base)}


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for key in LOGGED:
        logs = [[e[key] for e in found["log"] if key in e] for found in (one, other)]
        assert logs[0], key
        assert_close(*logs, tolerance=10 * tolerance, name=key)
    for name, weight in one["weights"].items():
        assert_close(other["weights"][name], weight, tolerance=tolerance, name=name)


def assert_same_gradients(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Of the policy's adapter, of the value adapter and of its head, in the first step."""
    assert one["gradients"].keys() == other["gradients"].keys() == one["weights"].keys()
    roles = {tiny_ppo.role(name): name for name in one["gradients"]}
    assert {"default", "value"} <= roles.keys()
    assert any(name.startswith("scalar_heads.value") for name in one["gradients"])
    for name, gradient in one["gradients"].items():
        largest = float(gradient.abs().max())
        assert_close(other["gradients"][name], gradient, tolerance=1e-5 * largest + 1e-8, name=name)
    for who in ("default", "value"):
        of_role = [g for n, g in one["gradients"].items() if tiny_ppo.role(n) == who]
        assert max(float(gradient.abs().max()) for gradient in of_role) > 1e-3, who


@pytest.mark.parametrize("case", ["tied", "groups", "some unscored"])
def test_accumulated_batches_are_one(case, bases, tmp_path):
    """Eight completions of uneven length, at once, in halves, and one by one."""
    whole = trained(bases, tmp_path / "8", CASES[case])
    for size in (4, 1):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        found = trained(bases, tmp_path / str(size), CASES[case] | split)
        assert_same(whole, found, 1e-6)


@pytest.fixture(scope="module")
def two_processes(bases, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes joined by gloo has at the end of every case."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "bases.json").write_text(json.dumps(bases))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", "accelerate_configs/cpu.yaml"]
    command += ["-m", "tests.equivalence.ppo_processes", str(folder)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [torch.load(folder / f"process_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, bases, two_processes, tmp_path):
    first, second = (found[case] for found in two_processes)
    for name, weight in first["weights"].items():
        assert torch.equal(second["weights"][name], weight), f"the processes differ in {name}"
    one = trained(bases, tmp_path, CASES[case])
    assert_same(one, first, 1e-4 if case == "adam" else 1e-6)
    assert_same_gradients(one, first)


@pytest.mark.parametrize("case", ["untied, checkpointed", "untied, reentrant"])
def test_checkpointed_is_not(case, bases, tmp_path):
    one = trained(bases, tmp_path / "on", CASES[case])
    other = trained(bases, tmp_path / "off", CASES[case] | {"activation_checkpointing": False})
    assert_same(one, other, 1e-6)
    assert_same_gradients(one, other)
