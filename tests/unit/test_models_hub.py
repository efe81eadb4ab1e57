"""Bases of the Hub, against a stand-in on this machine: the whole of SFT from two repositories."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.hub import NEW, OLD, Hub, environment, running

ROOT = Path(__file__).resolve().parents[2]


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Two revisions of a base, a gated one, and a data set."""
    folder = tmp_path_factory.mktemp("bases")
    old, new = (files_of(tiny.save_base(folder / name, seed=len(name))) for name in ("v1", "main"))
    rows = "".join(json.dumps(row) + "\n" for row in tiny.ROWS).encode()
    models = {"org/base": {OLD: old, NEW: new}, "org/gated": {NEW: new}}
    with running(models=models, datasets={"org/chats": {NEW: {"train.jsonl": rows}}}) as endpoint:
        yield endpoint


def sft(endpoint: str, home: Path, **keys: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "model_name_or_path": "org/base", "dataset_name": "org/chats", "max_steps": "1",
        "lora_r": "4", "output_dir": str(home / "run"),
    } | keys  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    changed = environment(endpoint, home / "cache") | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "toolkit", "sft", *words], env=os.environ | changed,
        capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip


def test_a_base_at_a_revision_is_trained_proved_and_found_again(hub, tmp_path):
    done = sft(hub, tmp_path, model_revision="v1")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert manifest["verification"]["verified"] == "fresh_load"
    assert manifest["base"] == {"name": "org/base", "commit": OLD}
    assert manifest["data"][0]["revision"] == NEW
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "v1")
    assert any(f"/resolve/{OLD}/" in path or "/resolve/v1/" in path for path in Hub.asked)
    assert not any("/org/base/resolve/main/model" in path for path in Hub.asked)

    # without a connection, at once, from the cache
    again = sft("http://127.0.0.1:9", tmp_path, model_revision="v1", max_steps="2", output_dir="b")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Retrying" not in again.stderr


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_name_or_path": "org/gated"}, "org/gated: access is gated; accept the terms at"),
        ({"model_name_or_path": "org/missing"}, "org/missing: no such repository on the Hub"),
        ({"model_revision": "v9"}, "org/base: no such revision on the Hub"),
    ],
    ids=["gated", "missing", "revision"],
)
def test_what_the_hub_refuses_is_one_line_and_code_6(keys, said, hub, tmp_path):
    done = sft(hub, tmp_path, **keys)
    assert done.returncode == 6, done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert said in line


@pytest.mark.parametrize(
    ("adapter", "code", "said"),
    [
        ("org/missing", 6, "org/missing: no such repository on the Hub"),
        ("org/base", 3, "start_from: org/base holds no adapter_config.json"),
    ],
)
def test_an_adapter_that_the_hub_does_not_have_is_one_line(
    adapter, code, said, hub, tmp_path, tiny_base
):
    done = sft(hub, tmp_path, model_name_or_path=str(tiny_base), start_from=adapter)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr


def test_an_adapter_that_cannot_be_asked_for_is_not_said_to_be_none(tmp_path, tiny_base):
    done = sft(
        "http://127.0.0.1:9", tmp_path, model_name_or_path=str(tiny_base), start_from="owner/x",
        dataset_name=str(ROOT / "recipes/quickstart/chats.jsonl"),
    )  # fmt: skip
    assert done.returncode == 6, done.stdout + done.stderr
    assert "owner/x: not in the local cache and the Hub cannot be reached" in done.stderr


def test_a_model_in_the_cache_is_no_adapter_without_a_connection(hub, tmp_path):
    """A snapshot holds no word of the files that a repository does not have."""
    fetch = "import huggingface_hub as h; h.snapshot_download('org/base')"
    ask = "from toolkit.models.load import adapter_config; print(adapter_config('org/base'))"
    for endpoint, code in ((hub, fetch), ("http://127.0.0.1:9", ask)):
        changed = environment(endpoint, tmp_path / "cache") | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | changed, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


def test_a_hub_that_does_not_answer_is_said_at_once(tmp_path):
    done = sft(
        "http://127.0.0.1:9", tmp_path, dataset_name=str(ROOT / "recipes/quickstart/chats.jsonl")
    )
    assert done.returncode == 6
    assert "org/base: not in the local cache and the Hub cannot be reached" in done.stderr
    assert "Retrying" not in done.stderr
