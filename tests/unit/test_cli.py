"""The command line: what each command prints, and the exit code and the one line of each error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from tests import tiny
from toolkit import cli
from toolkit.environment import attempt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tiny_base, chats, tmp_path):
    """Writes a recipe of two steps, with keys changed or added."""

    def write(**changed):
        keys = {
            "stage": "sft", "model_name_or_path": str(tiny_base), "dataset_name": str(chats),
            "output_dir": str(tmp_path / "run"), "max_steps": 2, "lora_r": 4,
            "per_device_train_batch_size": 4,
        } | changed  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return str(path)

    return write


def fails(capsys, code: int, *words: str) -> str:
    """The one line on standard error of a command that must fail."""
    assert cli.main(list(words)) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_names_every_command_and_loads_no_torch():
    code = "import sys; from toolkit import cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("run", "sft", "init", "check --keys", "inspect", "env", "accelerate launch"):
        assert f" {word}" in done.stdout or f"|{word}" in done.stdout, word
    assert all(len(line) <= 84 for line in done.stdout.splitlines())


def test_a_stage_s_help_gives_every_key(capsys):
    assert cli.main(["sft", "--help"]) == 0
    printed = capsys.readouterr().out
    for key in ("learning_rate", "lora_r", "dataset_name", "global_batch_size", "start_from"):
        assert f"  --{key} (" in printed


def test_check_keys(recipe, capsys):
    assert cli.main(["check", "--keys", recipe()]) == 0
    assert "every key is known and in range" in capsys.readouterr().out
    path = recipe(learning_ratee=1e-4)
    line = fails(capsys, 3, "check", "--keys", path)
    assert line.endswith("did you mean 'learning_rate'?")
    assert f"{path}:8: unknown key 'learning_ratee'" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn", "x.yaml"], "did you mean 'run'?"),
        (["run"], "a recipe must come first"),
        (["run", "--learning_rate", "1e-4", "x.yaml"], "found --learning_rate"),
        (["inspect", "--json"], "a recipe must come first"),
        (["merge"], "required: directory, --output; usage: toolkit merge DIR --output OUT ["),
        (["verify", "a", "b"], "unrecognized arguments: b; usage: toolkit verify DIR"),
    ],
)
def test_a_wrong_command_line(words, said, capsys):
    assert said in fails(capsys, 2, *words)


def test_flags_without_a_file(tiny_base, chats, tmp_path, capsys):
    words = ["sft", "--model_name_or_path", str(tiny_base), "--dataset_name", str(chats)]
    words += ["--output_dir", str(tmp_path / "run"), "--max_steps=1", "--packing", "--lora_r", "4"]
    assert cli.main(words) == 0
    assert json.loads((tmp_path / "run" / "stage.json").read_text())["recipe"]["packing"] is True
    assert cli.main(words) == 0
    assert "skipped" in capsys.readouterr().out
    assert "--overwrite" in fails(capsys, 3, *words, "--learning_rate", "1e-3")
    assert cli.main([*words, "--learning_rate", "1e-3", "--overwrite"]) == 0


def test_run_then_inspect(recipe, capsys):
    path = recipe()
    assert cli.main(["run", path, "--max_steps", "1"]) == 0
    printed = capsys.readouterr().out
    for word in ("toolkit.load(", "toolkit serve", "toolkit chat", "toolkit push"):
        assert word in printed
    assert cli.main(["inspect", path, "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("⟦") == printed.count("⟧") == 2
    assert "⟦Answer 0.<|im_end|>⟧" in printed
    assert cli.main(["inspect", path, "--json", "--rows", "3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert {"row", "input_ids", "labels", "text", "spans"} <= rows[0].keys()


def test_the_lines_that_are_printed_can_be_pasted(recipe, tmp_path, capsys):
    """What the end of a stage says is run as it stands, and gives the adapter's own answers."""
    import torch
    from transformers import AutoModelForCausalLM

    import toolkit

    assert cli.main(["run", recipe(learning_rate=1e-2)]) == 0
    printed = capsys.readouterr().out
    _, _, after = printed.partition("   in Python")
    pasted = [line.strip() for line in after.split("   in a shell")[0].splitlines()[1:]]
    assert len(pasted) == 2
    done = [sys.executable, "-c", "\n".join(pasted)]
    subprocess.run(done, check=True, cwd=ROOT, capture_output=True)
    merge = next(line.split() for line in printed.splitlines() if "toolkit merge" in line)
    assert cli.main(merge[1:]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run-merged")
    model, _ = toolkit.load(tmp_path / "run")
    ids = torch.tensor([[5, 6, 7, 257, 258]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, model(ids).logits, atol=1e-5)


def test_an_unknown_role(recipe, tmp_path, capsys):
    rows = [*tiny.ROWS[:2], {"messages": [{"role": "robot", "content": "Hello"}]}]
    path = tiny.save_rows(tmp_path / "bad.jsonl", rows)
    line = fails(capsys, 4, "run", recipe(dataset_name=str(path)))
    assert "bad.jsonl" in line
    assert "row 3" in line
    assert "robot" in line


def test_an_empty_file(recipe, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    line = fails(capsys, 4, "run", recipe(dataset_name=str(tmp_path / "empty.jsonl")))
    assert "empty.jsonl" in line
    assert not (tmp_path / "run" / "stage.json").exists()


def test_a_broken_template(recipe, tmp_path, capsys):
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for message in messages %}{{ message['content'] }")
    line = fails(capsys, 4, "run", recipe(chat_template_path=str(broken)))
    assert "chat template" in line


def test_a_missing_repository(recipe, capsys):
    """The tests are offline: a base that is neither here nor in the cache is said to be so."""
    line = fails(capsys, 6, "run", recipe(model_name_or_path="nobody/nothing-of-this-name"))
    assert "nobody/nothing-of-this-name" in line
    line = fails(capsys, 6, "run", recipe(dataset_name="nobody/no-rows-of-this-name"))
    assert "nobody/no-rows-of-this-name" in line


def test_sequences_longer_than_the_base(recipe, tmp_path, capsys):
    rows = [{"prompt": "word " * 200, "completion": "end"}]
    data = tiny.save_rows(tmp_path / "long.jsonl", rows)
    line = fails(capsys, 3, "run", recipe(dataset_name=str(data)))
    assert "has 512 positions; write max_length: 512" in line


def test_an_output_folder_that_cannot_be_made(recipe, chats, capsys):
    line = fails(capsys, 3, "run", recipe(output_dir=str(chats / "run")))
    assert "output_dir: " in line


def test_debug_adds_the_traceback(capsys):
    assert cli.main(["run", "nothing.yaml", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_debug_with_a_value_is_transformers_key(recipe):
    words = ["check", "--keys", recipe()]
    assert cli.main([*words, "--debug", "underflow_overflow"]) == 0
    assert cli.asks_for_traceback([*words, "--debug"]) == (True, words)
    assert cli.asks_for_traceback([*words, "--debug", "x"]) == (False, [*words, "--debug", "x"])


@pytest.mark.parametrize("rows", ["-1", "x"])
def test_inspect_counts_from_nought(rows, recipe, capsys):
    line = fails(capsys, 2, "inspect", recipe(), f"--rows={rows}")
    assert "expected a whole number from 0" in line


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, 5, "min_lr"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, 5, "foo"),
        ({"model_init_kwargs": {"foo": 1}}, 3, "foo"),
        ({"attn_implementation": "nope"}, 3, "nope"),
        ({"activation_offloading": True}, 3, "there is no GPU here"),
        ({"pad_token": "<|im_end|>"}, 3, "pad_token: '<|im_end|>' is the stop token"),
        ({"pad_token": "nope"}, 3, "pad_token: 'nope' is not in the tokenizer's vocabulary"),
    ],
    ids=str,
)
def test_what_upstream_refuses_is_one_line(keys, code, said, recipe, capsys):
    assert said in fails(capsys, code, "run", recipe(**keys))


def test_a_chosen_pad_token_is_the_one_that_is_saved(recipe, tmp_path):
    assert cli.main(["run", recipe(pad_token="a")]) == 0
    words = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert words.pad_token == "a"
    assert "<|pad|>" not in words.get_vocab()


def test_held_out_rows_alone_are_packed(recipe):
    keys = {"eval_packing": True, "test_split_size": 4, "eval_strategy": "epoch"}
    assert cli.main(["run", recipe(**keys)]) == 0


def test_env_names_versions_and_devices(capsys):
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    for word in ("toolkit", "torch", "trl", "peft", "bitsandbytes", "device", "4-bit", "free disk"):
        assert f"\n{word} " in f"\n{printed}"


def test_env_says_what_is_broken():
    def probe():
        raise RuntimeError("CUDA driver is too old\nsecond line")

    assert attempt(probe) == "fails: RuntimeError: CUDA driver is too old"


def test_env_shows_no_token(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "HF_TOKEN", "hf_secretsecret")
    cli.main(["env"])
    assert "hf_secret" not in capsys.readouterr().out
