"""Data sets of the Hub, against a stand-in on this machine that speaks its protocol."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import NEW, OLD, Hub, Repositories, environment, running

ROOT = Path(__file__).resolve().parents[2]
ROW = {"prompt": "2+2", "completion": "4"}
LINES = "".join(json.dumps({**ROW, "n": n}) + "\n" for n in range(3)).encode()
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}
CHATS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL]}]},
]
TWO_CONFIGS = b"""---
configs:
- {config_name: main, data_files: [{split: train, path: main/train.jsonl}]}
- {config_name: socratic, data_files: [{split: train, path: socratic/train.jsonl}]}
---
"""
REPOSITORIES: Repositories = {
    "org/plain": {
        OLD: {"train.jsonl": LINES},
        NEW: {"train.jsonl": LINES * 2, "test.jsonl": LINES},
    },
    "org/two": {NEW: {"README.md": TWO_CONFIGS, "main/train.jsonl": LINES,
                      "socratic/train.jsonl": LINES}},
    "org/chats": {NEW: {"train.jsonl": "\n".join(map(json.dumps, CHATS)).encode()}},
    "org/broken": {NEW: {"train.jsonl": b'{"text": "a"}\n{"text": \n'}},
    "org/empty": {NEW: {"README.md": b"nothing here"}},
    "org/gated": {NEW: {"train.jsonl": LINES}},
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(datasets=REPOSITORIES) as address:
        yield address


CHILD = """
import json, sys
import datasets
from toolkit.data.sources import load_rows
from toolkit.errors import ToolkitError
from toolkit.recipe import recipe_from_keywords

datasets.disable_progress_bars()
for keys in json.loads(sys.argv[1]):
    recipe = recipe_from_keywords("sft", model_name_or_path="base", output_dir="x", **keys).stages[0]
    try:
        rows = load_rows(recipe)
        print(json.dumps({"rows": rows.train[:], "provenance": rows.provenance, "notes": rows.notes,
                          "held_out": len(rows.eval or ())}))
    except ToolkitError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}))
"""


def ask(endpoint: str, home: Path, *recipes: dict[str, Any], **variables: str) -> list[Any]:
    """Load each recipe's rows in one process that takes the stand-in for the Hub."""
    changed = environment(endpoint, home) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(recipes)],
        env=os.environ | changed | variables, capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


REFUSED = {
    "missing": ({"dataset_name": "org/missing"},
                "data set 'org/missing' is not on the Hub, or is private, .*`hf auth login`"),
    "gated": ({"dataset_name": "org/gated"},
              "data set 'org/gated' is gated: accept its terms at .*/datasets/org/gated, and log in "
              "with `hf auth login`"),
    "revision": ({"dataset_name": "org/plain", "dataset_revision": "v9"},
                 "data set 'org/plain' has no revision 'v9'; see .*/datasets/org/plain/commits"),
    "split": ({"dataset_name": "org/plain", "dataset_train_split": "training"},
              "data set 'org/plain': there is no split 'training'; found test, train"),
    "config": ({"dataset_name": "org/two", "dataset_config": "mian"},
               "data set 'org/two' has the configurations main, socratic: name one with "
               "dataset_config"),
    "no config": ({"dataset_name": "org/two"},
                  "data set 'org/two' has the configurations main, socratic: name one with "
                  "dataset_config"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("refused")
    Hub.asked.clear()
    answers = ask(endpoint, home, *(keys for keys, _ in REFUSED.values()))
    return dict(zip(REFUSED, answers, strict=True)) | {"asked": list(Hub.asked)}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_and_code_6(refusals: dict[str, Any], name: str):
    answer = refusals[name]
    assert answer.get("code") == 6, answer
    assert re.search(REFUSED[name][1], answer["error"]), answer["error"]
    assert "\n" not in answer["error"]


def test_refusals_come_before_any_download(refusals: dict[str, Any]):
    assert refusals["asked"]
    assert not [path for path in refusals["asked"] if path.endswith("train.jsonl")]


def test_rows_are_read_at_the_revision_and_again_without_a_connection(
    endpoint: str, tmp_path: Path
):
    old, new, chats, broken, empty = ask(
        endpoint, tmp_path,
        {"dataset_name": "org/plain", "dataset_revision": "v1"},
        {"dataset_name": "org/plain", "eval_strategy": "epoch", "dataset_train_split": "train[1:]"},
        {"dataset_name": "org/chats"},
        {"dataset_name": "org/broken"},
        {"dataset_name": "org/empty"},
    )  # fmt: skip
    assert old["rows"]["completion"] == ["4"] * 3
    assert old["rows"]["source"][0] == "org/plain train"
    assert [(p["revision"], p["rows"]) for p in old["provenance"]] == [(OLD, 3)]
    assert [(p["revision"], p["rows"]) for p in new["provenance"]] == [(NEW, 5), (NEW, 3)]
    assert new["held_out"] == 3
    places = ", ".join(f"plain test:{row}" for row in (1, 2, 3))
    assert f"warning: 3 of the 3 held-out rows are training rows too ({places})" in new["notes"]
    assert chats["rows"]["messages"][0] == CHATS[0]["messages"]
    assert chats["rows"]["messages"][1][1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
    }
    assert (broken["code"], empty["code"]) == (4, 4)
    assert re.search("data set 'org/broken': .*JSON.*; see ", broken["error"]), broken["error"]
    assert "doesn't contain any data files" in empty["error"]

    Hub.asked.clear()
    latest, pinned, tag, other, absent = ask(
        endpoint, tmp_path,
        {"dataset_name": "org/chats"},
        {"dataset_name": "org/chats", "dataset_revision": NEW},
        {"dataset_name": "org/chats", "dataset_revision": "v1"},
        {"dataset_name": "org/chats", "dataset_revision": OLD},
        {"dataset_name": "org/never"},
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert not Hub.asked
    assert latest["rows"] == pinned["rows"] == chats["rows"]
    assert latest["provenance"][0]["revision"] == NEW
    assert f"org/chats: from the local cache, at commit {NEW}" in latest["notes"]
    for answer in (tag, other):
        assert answer["code"] == 6
        assert f"the cached {NEW}: connect, or set dataset_revision" in answer["error"]
    assert absent["code"] == 6
    assert "not in the local cache and HF_HUB_OFFLINE is set" in absent["error"]


def test_a_hub_that_does_not_answer_is_said_so(tmp_path: Path):
    (answer,) = ask("http://127.0.0.1:9", tmp_path, {"dataset_name": "org/plain"})
    assert answer["code"] == 6
    assert "not in the local cache and the Hub is out of reach" in answer["error"]
