"""An adapter over a base that FSDP2 has sharded over two processes is proved from disk, on the shards."""

import json

import pytest

import toolkit
from tests import tiny
from tests.launch import launched
from tests.preferences import PAIRS
from toolkit.artifacts.proof_file import unverified
from toolkit.models.chatml import prepare_tokenizer
from toolkit.verification.verify import verify

CONFIG = "accelerate_configs/fsdp2.yaml"
PROCESSES = "tests.equivalence.fsdp_processes"
KEYS = {
    "max_steps": 2, "learning_rate": 1e-2, "lora_r": 4, "per_device_train_batch_size": 4,
    "lr_scheduler_type": "constant", "report_to": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """With a chat template and a pad token of its own: PEFT cannot train new rows on shards."""
    folder = tmp_path_factory.mktemp("sharded") / "base"
    words = tiny.tokenizer()
    prepare_tokenizer(words, conversational=True)
    tiny.save_base(folder, vocab_size=len(words))
    words.save_pretrained(folder)
    return folder


def run(base, directory, fault="none", stage="sft"):
    """What two processes come to that train a stage on shards, and where."""
    rows = tiny.ROWS if stage == "sft" else PAIRS
    data = tiny.save_rows(directory / "rows.jsonl", rows)
    keys = KEYS | {
        "model_name_or_path": base,
        "dataset_name": data,
        "output_dir": directory / "run",
    }
    words = (word for key, value in keys.items() for word in (f"--{key}", value))
    return launched(CONFIG, PROCESSES, fault, stage, *words), directory / "run"


@pytest.mark.parametrize("stage", [
    "sft", pytest.param("reward", marks=pytest.mark.slow), pytest.param("dpo", marks=pytest.mark.slow),
])  # fmt: skip
def test_what_was_saved_is_proved_on_the_shards_and_by_plain_peft(stage, base, tmp_path):
    done, folder = run(base, tmp_path, stage=stage)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((folder / "stage.json").read_text())["verification"]
    assert found["verified"] == "resident_base"
    assert found["reason"] == "the model is sharded"
    assert found["largest_difference"] < 1e-5
    assert found["tensors"] >= 28
    assert all(finding.passed for finding in verify(folder))
    assert toolkit.merge(folder, tmp_path / "merged").metrics["effect"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("tensor", "is not what was trained"),
        ("numbers", "does not give the numbers of what was trained"),
        ("lost", "differ by nan"),
    ],
)
def test_what_is_on_disk_and_not_what_is_in_memory_is_proved(fault, said, base, tmp_path):
    done, folder = run(base, tmp_path, fault)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert not (folder / "stage.json").exists()
    assert unverified(folder) is not None
