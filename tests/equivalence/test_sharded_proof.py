"""An adapter over a base that FSDP2 has sharded over two processes is proved from disk, on the shards."""

import json

import pytest
from safetensors.torch import load_file

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.launch import ROOT, launched
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


PROMPTS = [{"prompt": f"{'ab ' * (index % 4 + 1)}{index}"} for index in range(16)]
ROWS = {"sft": tiny.ROWS, "reward": PAIRS, "dpo": PAIRS, "grpo": PROMPTS, "ppo": PROMPTS}
SAMPLED = {
    "reward_funcs": f"{ROOT}/tests/tiny_ppo.py:odd", "max_completion_length": 8,
    "num_generations": 4,
}  # fmt: skip


def run(base, directory, fault="none", stage="sft", processes=2, **more):
    """What processes come to that train a stage on shards, and where."""
    data = tiny.save_rows(base.parent / f"{stage}.jsonl", ROWS[stage])
    keys = KEYS | {
        "model_name_or_path": base,
        "dataset_name": data,
        "output_dir": directory / "run",
    }
    keys |= (SAMPLED if stage in ("grpo", "ppo") else {}) | more
    words = (word for key, value in keys.items() for word in (f"--{key}", value))
    done = launched(CONFIG, PROCESSES, fault, stage, *words, processes=processes)
    return done, directory / "run"


@pytest.mark.parametrize("stage", [
    "sft", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("reward", "dpo", "grpo", "ppo")),
])  # fmt: skip
def test_what_was_saved_is_proved_on_the_shards_and_by_plain_peft(stage, base, tmp_path):
    done, folder = run(base, tmp_path, stage=stage)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((folder / "stage.json").read_text())["verification"]
    assert found["verified"] == "resident_base"
    assert found["reason"] == "the model is sharded"
    assert found["largest_difference"] < 1e-5
    assert found["tensors"] >= 28
    assert (folder / "value" / "adapter_model.safetensors").is_file() == (stage == "ppo")
    findings = list(verify(folder))
    assert all(finding.passed for finding in findings), [finding.line() for finding in findings]
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


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_a_sharded_checkpoint_is_resumed_by_another_number_of_processes(processes, base, tmp_path):
    """With the same global batch, what comes out is what two processes would have come to."""
    keys = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "global_batch_size": 12,
        "lora_dropout": 0.0, "per_device_train_batch_size": 12,
    }  # fmt: skip
    whole, other = tmp_path / "whole", tmp_path / "other"
    whole.mkdir()
    other.mkdir()
    done, folder = run(base, whole, **keys)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    place = folder / "checkpoint-2"
    done, resumed = run(base, other, processes=processes, resume_from_checkpoint=place, **keys)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = " ".join(done.stdout.split())
    assert f"checkpoint-2 was written by 2 process(es) and is resumed by {processes}" in said
    expected = load_file(folder / "adapter_model.safetensors")
    found = load_file(resumed / "adapter_model.safetensors")
    for name, value in expected.items():
        assert_close(found[name], value, tolerance=1e-5, name=name)
