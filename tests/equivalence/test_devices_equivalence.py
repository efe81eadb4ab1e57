"""GRPO on two processes is as on one; rows are prepared once; the first process alone writes."""

import json
import os

import pytest
import torch

from tests import tiny, tiny_ppo
from tests.closeness import assert_close
from tests.equivalence.devices_processes import CASES, grpo
from tests.launch import launched

pytestmark = [
    tiny_ppo.quiet,
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying:UserWarning"),
]
LOGGED = ("loss", "reward", "reward_std", "completions/mean_length", "grad_norm")


@pytest.fixture(scope="module")
def two(tiny_base, tmp_path_factory):
    """The folder in which two processes have worked, and what each has found."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "base.json").write_text(json.dumps(str(tiny_base)))
    tiny.save_rows(folder / "rows.jsonl", tiny.ROWS)
    before = os.environ.get("HF_DATASETS_CACHE")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    try:
        done = launched(
            "accelerate_configs/cpu.yaml", "tests.equivalence.devices_processes", folder
        )
    finally:
        os.environ.pop("HF_DATASETS_CACHE")
        os.environ.update({"HF_DATASETS_CACHE": before} if before else {})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, [torch.load(folder / f"process_{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_grpo_on_two_processes_is_as_on_one(case, two, tiny_base, tmp_path):
    first, second = (found["grpo"][case] for found in two[1])
    one = grpo(tiny_base, tmp_path, CASES[case])
    for key in LOGGED:
        logs = [[e[key] for e in found["log"] if key in e] for found in (one, first)]
        assert len(logs[0]) >= 2, key
        assert_close(*logs, tolerance=1e-5, name=key)
    for name, weight in one["weights"].items():
        assert torch.equal(second["weights"][name], first["weights"][name])
        assert_close(first["weights"][name], weight, tolerance=1e-6, name=name)


def test_rows_are_prepared_by_one_process(two):
    folder, found = two
    # once for all, and once by the first process alone
    assert len((folder / "computed_by").read_text().splitlines()) == 2
    assert [each["number"] for each in found] == [[0, 2, 4, 6, 8, 10]] * 2
    # the rows as read, the sequences of both sides of the split, GRPO's prompts, and these numbers;
    # what the first process maps alone, `datasets` calls cache-…
    names = [path.name for path in (folder / "cache" / "toolkit").glob("*.arrow")]
    assert len([name for name in names if not name.startswith("cache-")]) == 5


def test_the_first_process_alone_writes(two):
    folder, (first, second) = two
    assert {path.rpartition("/")[2] for path in second["written"]} <= {"rng_state_1.pth"}
    names = {path.rpartition("/")[2] for path in first["written"]}
    assert {"stage.json.partial", "recipe.yaml", "log.jsonl"} & names
    assert (folder / "run" / "checkpoint-2" / "rng_state_1.pth").is_file()
