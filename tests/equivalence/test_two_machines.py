"""Two launchers that meet by torchrun's rendezvous are two machines; each has a folder of its own."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.launch import ROOT, environment

pytestmark = pytest.mark.slow
KEYS = {
    "lora_r": 4, "lora_dropout": 0.0, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    "global_batch_size": 8, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2,
    "max_steps": 4, "seed": 3, "report_to": "none",
}  # fmt: skip


def machines(folders, *words, **keys):
    """What each of two machines comes to, of which each is in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [str(word) for key, value in keys.items() for word in (f"--{key}", value)]
    command: list[object] = [sys.executable, "-m", "toolkit", *words, *given]
    config = folders[0].parent / "multi_node.yaml"  # in float32, to compare
    written = (ROOT / "accelerate_configs" / config.name).read_text(encoding="utf-8")
    config.write_text(written.replace("mixed_precision: bf16", 'mixed_precision: "no"'))
    command += ["--accelerate", config, "--num_machines", "2", "--num_processes", "2"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    on_cpu = environment() | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    runs: list[subprocess.Popen[str]] = []
    for number, folder in enumerate(folders):
        runs.append(
            subprocess.Popen(
                [*map(str, command), "--machine_rank", str(number)], cwd=folder, env=on_cpu, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        # on one machine both could be the host, and the first refuses a port that is taken
        while runs[0].poll() is None and not listening(port):
            time.sleep(0.2)
    return [(run.communicate()[0], run.returncode) for run in runs]


def listening(port):
    """Whether the first machine waits for others."""
    found = psutil.net_connections(kind="tcp")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in found)


@pytest.fixture
def folders(tmp_path):
    """Of two machines."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return [tmp_path / "first", tmp_path / "second"]


@pytest.fixture
def pipeline(tiny_base, tmp_path):
    """SFT, and a DPO stage that goes on from its adapter."""
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    pairs = [{"prompt": f"Q{i}: ", "chosen": "yes", "rejected": "no!"} for i in range(8)]
    pairs = tiny.save_rows(tmp_path / "pairs.jsonl", pairs)
    path = tmp_path / "two.yaml"
    path.write_text(f"""
model_name_or_path: {tiny_base}
stages:
  - {{stage: sft, dataset_name: {rows}}}
  - {{stage: dpo, start_from: sft, dataset_name: {pairs}}}
""")
    return path


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same(folder, other):
    found, wanted = weights(folder), weights(other)
    for key, value in wanted.items():
        assert_close(found[key], value, tolerance=1e-5, name=key)


def test_each_with_a_disk_of_its_own(folders, pipeline, tmp_path):
    ended = machines(folders, "run", pipeline, output_dir="run", **KEYS)
    assert [code for _, code in ended] == [0, 0], ended
    assert "is a disk of each machine's own" in " ".join(ended[0][0].split())
    assert "━━ sft" in ended[0][0]
    assert "━━ sft" not in ended[1][0]
    one = toolkit.run(pipeline, output_dir=tmp_path / "one", **KEYS)
    for folder in folders:
        for stage in ("sft", "dpo"):
            assert_same(folder / "run" / stage, one.output_dir / stage)
            assert json.loads((folder / "run" / stage / "stage.json").read_text())["processes"] == 2
            assert (folder / "run" / stage / "checkpoint-4" / "optimizer.pt").is_file()
    # what is finished is skipped by both
    again = machines(folders, "run", pipeline, output_dir="run", **KEYS)
    assert again[0][0].count("finished already") == 2, again
    assert [code for _, code in again] == [0, 0]


def test_they_go_on_from_a_checkpoint_that_is_whole_on_both(folders, tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    keys = KEYS | {"model_name_or_path": tiny_base, "dataset_name": rows, "output_dir": "run"}
    ended = machines(folders, "sft", **keys)
    assert [code for _, code in ended] == [0, 0], ended
    whole = weights(folders[0] / "run")
    for folder in folders:
        stage = json.loads((folder / "run" / "stage.json").read_text())
        (folder / "run" / "started.json").write_text(json.dumps(stage["inputs"]))
        (folder / "run" / "stage.json").unlink()
    (folders[1] / "run" / "checkpoint-4" / "optimizer.pt").unlink()
    ended = machines(folders, "sft", **keys)
    assert [code for _, code in ended] == [0, 0], ended
    assert "resuming from run/checkpoint-2" in ended[0][0]
    for key, value in whole.items():
        assert_close(weights(folders[1] / "run")[key], value, tolerance=1e-6, name=key)
    # a node that is new has none
    for folder in folders:
        (folder / "run" / "stage.json").rename(folder / "run" / "started.json")
        stage = json.loads((folder / "run" / "started.json").read_text())
        (folder / "run" / "started.json").write_text(json.dumps(stage["inputs"]))
    for number in (2, 4):
        os.rename(folders[1] / "run" / f"checkpoint-{number}", tmp_path / str(number))
    ended = machines(folders, "sft", **keys)
    assert [code for _, code in ended] == [5, 5]
    said = " ".join(ended[0][0].split())
    assert "checkpoint-4 is not whole on every machine (not for process(es) 1)" in said


def test_an_exam_needs_a_folder_that_both_see(folders, tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "exam.jsonl", [{"question": "1+1?", "answer": "2"}])
    path = tmp_path / "exam.yaml"
    path.write_text(
        f"stage: evaluate\nmodel_name_or_path: {tiny_base}\ntasks: [{{dataset_name: {rows}}}]\n"
        "max_completion_length: 4\n"
    )
    ended = machines(folders, "run", path, output_dir="run")
    assert [code for _, code in ended] == [3, 3]
    assert "give a folder that all machines see" in " ".join(ended[0][0].split())
    shared = machines(folders, "run", path, output_dir=tmp_path / "shared")
    assert [code for _, code in shared] == [0, 0], shared
