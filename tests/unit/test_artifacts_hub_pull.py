"""Pulling from the stand-in for the Hub: base, adapter and rows at a revision; what was pushed trains on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.hub_stand_in import Hub, environment, running

ROOT = Path(__file__).resolve().parents[2]


def toolkit(hub: Hub, home: Path, *words: str) -> str:
    """Run a command against the stand-in; gives what it printed."""
    variables = environment(hub, home / "cache") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *words], env=os.environ | variables,
        capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def sft(hub: Hub, home: Path, output: str, **keys: str) -> Path:
    settings = {
        "model_name_or_path": "org/base", "model_revision": "v1", "dataset_name": "org/chats",
        "dataset_revision": "v1", "max_steps": "1", "learning_rate": "1e-2", "output_dir": output,
    } | keys  # fmt: skip
    toolkit(hub, home, "sft", *(w for key, value in settings.items() for w in (f"--{key}", value)))
    return home / output


@pytest.fixture
def hub(tmp_path: Path):
    """A private base and public rows, of which `main` is other than `v1`."""
    bases = [tiny.save_base(tmp_path / name, seed=seed) for seed, name in enumerate(("old", "new"))]
    with running() as hub:
        for branch, folder, rows in zip(
            ("v1", "main"), bases, (tiny.ROWS, tiny.ROWS[:9]), strict=True
        ):
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
            hub.add("org/base", files, branch=branch, private=True)
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            hub.add("org/chats", {"train.jsonl": lines}, branch=branch, kind="datasets")
        yield hub


def test_what_is_trained_from_the_hub_is_pushed_pulled_and_trained_on(hub, tmp_path):
    first = sft(hub, tmp_path, "one", lora_r="4")
    manifest = json.loads((first / "stage.json").read_text())
    commits = {name: hub.repositories[kind, name].branches["v1"]
               for kind, name in (("models", "org/base"), ("datasets", "org/chats"))}  # fmt: skip
    assert manifest["base"] == {"name": "org/base", "commit": commits["org/base"]}
    (rows,) = manifest["data"]
    assert (rows["revision"], rows["rows"]) == (commits["org/chats"], len(tiny.ROWS))

    printed = toolkit(hub, tmp_path, "push", "one", "me/tuned")
    assert "not named in the card, for it cannot be seen by all: org/base" in printed
    head = hub["me/tuned"].at("main")
    assert head is not None
    pushed = head[1]
    for name in ("README.md", "stage.json"):
        assert b"org/base" not in pushed[name]
        assert str(tmp_path).encode() not in pushed[name]
    assert b"org/chats" in pushed["README.md"]
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        assert pushed[name] == (first / name).read_bytes()

    hub.add("me/tuned", pushed, branch="v2")
    hub.add("me/tuned", {"README.md": b"of `main`, nothing is left"})
    second = sft(hub, tmp_path, "two", start_from="me/tuned", start_from_revision="v2")
    manifest = json.loads((second / "stage.json").read_text())
    assert manifest["recipe"]["start_from"] == "me/tuned"
    assert manifest["verification"]["verified"] == "fresh_load"
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 4
