"""What leaves this machine: no secret, no local path, no private name, nothing that is not proved."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from toolkit.artifacts.outgoing import (
    ALLOWED,
    allowed_files,
    check_finished,
    check_paths,
    is_local,
    is_ours,
    public,
    without_paths,
)
from toolkit.artifacts.secret_search import BLOCK, OVERLAP, RUN, check_secrets, has_run
from toolkit.errors import HubError

SECRETS = {
    "Hugging Face": "hf_" + "Zq7" * 12,
    "GitHub": "ghp_" + "aB3" * 12,
    "OpenAI or Anthropic": "sk-ant-" + "aB3" * 12,
    "AWS": "AKIA" + "Z7" * 8,
    "Google": "AIza" + "aB3-_" * 7,
    "GitLab": "glpat-" + "aB3_" * 6,
    "Slack": "xoxb-" + "12ab" * 8,
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", ["tokenizer.json", "adapter_model.safetensors"])
def test_a_secret_in_any_file_stops_the_push_and_is_not_repeated(kind, name, tmp_path):
    noise = random.Random(1).randbytes(100_000)
    file = tmp_path / name
    file.write_bytes(noise + b' "' + SECRETS[kind].encode() + b'" ' + noise)
    with pytest.raises(HubError) as raised:
        check_secrets({name: file})
    assert f"{name}: looks as if it held a secret at byte 100,002 ({kind}" in str(raised.value)
    assert SECRETS[kind] not in str(raised.value)


def test_the_values_of_this_process_s_secrets_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    file = tmp_path / "config.json"
    file.write_text('{"key": "0123456789abcdef0123456789abcdef01234567"}')
    with pytest.raises(HubError, match="the value of WANDB_API_KEY"):
        check_secrets({"config.json": file})


@pytest.mark.parametrize("shift", [-OVERLAP - 1, -40, -1, 0, 1, 40])
def test_a_secret_at_the_seam_of_two_blocks_is_found_where_it_is(shift, tmp_path):
    file = tmp_path / "model.safetensors"
    at = BLOCK - OVERLAP + shift if shift > -OVERLAP else BLOCK + shift
    file.write_bytes(bytes(at) + SECRETS["Hugging Face"].encode() + bytes(BLOCK))
    with pytest.raises(HubError, match=f"at byte {at:,} "):
        check_secrets({"model.safetensors": file})
    file.write_bytes(bytes(at) + b"a" + SECRETS["Hugging Face"].encode() + bytes(BLOCK))
    check_secrets({"model.safetensors": file})  # inside a word


def test_a_value_that_is_no_ascii_is_looked_for_in_every_block(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "пароль-пароль-пароль")
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(3 * BLOCK) + "пароль-пароль-пароль".encode() + bytes(9))
    with pytest.raises(HubError, match="the value of MY_PASSWORD"):
        check_secrets({"model.safetensors": file})


def test_blocks_are_passed_over_only_without_a_run_of_letters():
    """What looks at every fourth byte first says the same as a search of all."""
    chance = random.Random(3)
    found = 0
    for _ in range(400):
        content = bytearray(chance.choices([0, 0x41, 0x7F, 0x20], [1, 8, 0.2, 8], k=90))
        content = content[: chance.randrange(len(content))]
        expected = RUN.search(content) is not None
        found += expected
        assert has_run(bytes(content)) == expected, bytes(content)
    assert 100 < found < 300


def test_noise_and_words_are_no_secrets(tmp_path):
    words = "task-oriented_dialogue-of-many-more-words hf_hub sk-learn taskhf_" + "a" * 40
    noise = tmp_path / "model.safetensors"
    noise.write_bytes(random.Random(2).randbytes(3_000_000))
    (tmp_path / "tokenizer.json").write_text(words)
    (tmp_path / "vocab.txt").write_text("")
    check_secrets({path.name: path for path in tmp_path.iterdir()})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/runs/base", "base"),
        ("~/runs/base", "base"),
        ("./runs", "runs"),
        ("../data/rows.jsonl", "rows.jsonl"),
        (r"C:\Users\me\base", "base"),
        ("toolkit/data/demo_base", "demo_base"),
        ("data /home/me/rows.jsonl", "data rows.jsonl"),
        ("base toolkit/data/demo_base", "base demo_base"),
        ("read /home/me/rows.jsonl, row 3", "read rows.jsonl, row 3"),
        ("adapter:/home/me/judge", "adapter:judge"),
        ("file:///home/me/rows.jsonl", "rows.jsonl"),
        ("org/base", "org/base"),
        ("https://huggingface.co/org/base/tree/main", "https://huggingface.co/org/base/tree/main"),
        ("sha256:0123", "sha256:0123"),
        ("1/2 and 3/4", "1/2 and 3/4"),
    ],
)
def test_a_local_path_is_cut_down_to_its_last_part(text, shown):
    assert public(text, lambda text: text) == shown


def test_a_folder_with_the_name_of_a_hub_id_is_local(tmp_path, monkeypatch):
    assert not is_local("org/base")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "base").mkdir(parents=True)
    assert is_local("org/base")


def test_names_of_metrics_are_kept_apart():
    names = {"rewards/answer/mean": 1, "rewards/answer/std": 2, "rewards/adapter:/home/me/judge": 3}
    assert without_paths(names, lambda text: text) == {
        "rewards/answer/mean": 1, "rewards/answer/std": 2, "rewards/adapter:judge": 3,
    }  # fmt: skip


def test_rows_of_data_are_dropped_wherever_they_are():
    found = {"tasks": [{"name": "t", "rows": [{"text": "a"}]}], "rows": 3, "samples": ["a"]}
    assert without_paths(found, str.upper) == {"TASKS": [{"NAME": "T"}], "ROWS": 3}


def test_a_path_that_is_left_stops_the_push(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(f"{{# from {tmp_path} #}}")
    with pytest.raises(HubError, match=r"chat_template\.jinja: holds the local path"):
        check_paths({"chat_template.jinja": tmp_path / "chat_template.jinja"}, tmp_path)


def test_pickles_state_logs_and_rows_are_never_allowed(tmp_path):
    refused = [
        "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
        "log.jsonl", "pytorch_model.bin", "adapter_model.bin", "completions-sft.jsonl",
        "proof.json", "started.json", "report.json", "pairs.jsonl", "recipe.yaml", ".env",
        "modeling_x.py",
    ]  # fmt: skip
    for name in [*refused, "adapter_config.json", "adapter_model.safetensors"]:
        (tmp_path / name).write_text("{}")
    assert list(allowed_files(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not any(is_ours(name) for name in [*refused, "README.md", "picture.png"])
    assert not [pattern for pattern in ALLOWED if pattern.endswith((".bin", ".pt", ".py", "*"))]


def stage(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"trained")
    (folder / "adapter_config.json").write_text("{}")
    digest = hashlib.sha256(b"trained").hexdigest()
    outputs = {weights.name: {"sha256": digest, "bytes": 7}, "README.md": {"sha256": "0"}}
    (folder / "stage.json").write_text(json.dumps({"stage": "sft", "outputs": outputs}))
    return folder


def test_a_card_that_was_edited_is_no_damage(tmp_path):
    folder = stage(tmp_path)
    (folder / "README.md").write_text("mine")
    assert check_finished(folder, allowed_files(folder))["stage"] == "sft"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "stage.json").rename(f / "started.json"), "the stage did not finish"),
        (lambda f: (f / "stage.json").write_text('{"sta'), "the stage did not finish"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"other"),
            "adapter_model.safetensors was changed since",
        ),
        (
            lambda f: (f / "proof.json").write_text('{"verified": "no", "failure": "NaN"}'),
            r"counts as unverified \(NaN\)",
        ),
    ],
    ids=["started", "half", "changed", "unverified"],
)
def test_what_is_not_proved_is_not_pushed(spoil, said, tmp_path):
    folder = stage(tmp_path)
    spoil(folder)
    with pytest.raises(HubError, match=said):
        check_finished(folder, allowed_files(folder))
