"""Push against a stand-in for the Hub: what leaves, what happens when calls fail, what it costs."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.numpy import save

from tests.hub_stand_in import Fault, Hub, environment, in_process
from toolkit import cli
from toolkit.artifacts import hub as pushing
from toolkit.artifacts import hub_commit, plots
from toolkit.errors import HubError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_" + "Zq7" * 12
PUBLIC = {"README.md": b"a base"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A Hub with a public base that this process takes for the Hub."""
    with in_process(monkeypatch) as hub:
        hub.add("org/base", PUBLIC, card={"license": "apache-2.0"})
        yield hub


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder as a training run leaves it: an adapter, and what must stay here."""
    folder = tmp_path / "work" / "sft"
    (folder / "checkpoint-3").mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}
    for name, content in {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": weights(random.Random(0), 50_000),
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"---\nbase_model: /home/me/base\n---\n# Model Card for Model ID\n",
        "training_args.bin": f"token {SECRET}".encode(),
        "optimizer.pt": b"state",
        "log.jsonl": b"{}\n",
        "rows.jsonl": b'{"text": "a row"}\n',
        "checkpoint-3/adapter_model.safetensors": b"early",
    }.items():
        (folder / name).write_bytes(content)
    return folder


def weights(chance: random.Random, size: int) -> bytes:
    """A file of weights that nothing can make smaller."""
    return save({"weight": np.frombuffer(chance.randbytes(size), np.uint8)})


def sent(hub: Hub, name: str = "org/thing", revision: str = "main") -> dict[str, bytes]:
    """What a repository holds, without the file that the Hub itself puts there."""
    found = hub[name].at(revision)
    assert found is not None
    return {path: content for path, content in found[1].items() if path != ".gitattributes"}


def test_only_what_the_list_allows_is_pushed_and_privately(hub, adapter):
    done = pushing.push(adapter, "org/thing")
    pushed = sent(hub)
    assert sorted(pushed) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "tokenizer.json",
    ]  # fmt: skip
    for name in set(pushed) - {"README.md"}:
        assert pushed[name] == (adapter / name).read_bytes()
    assert b"/home/me" not in pushed["README.md"]
    (created,) = hub.created
    assert created["visibility"] == "private"
    assert done.made
    assert done.url == f"{hub.endpoint}/org/thing/commit/{hub['org/thing'].branches['main']}"
    (stays,) = (note for note in done.notes if note.startswith("stays here"))
    for name in ("training_args.bin", "optimizer.pt", "rows.jsonl", "checkpoint-3"):
        assert name in stays


def test_an_unchanged_push_makes_no_commit(hub, adapter):
    first = pushing.push(adapter, "org/thing")
    before, calls = len(hub["org/thing"].commits), hub.calls["commit"]
    again = pushing.push(adapter, "org/thing")
    assert (first.made, again.made) == (True, False)
    assert again.commit == first.commit
    assert (len(hub["org/thing"].commits), hub.calls["commit"]) == (before, calls)


def test_a_branch_of_its_own(hub, adapter):
    pushing.push(adapter, "org/thing")
    main = sent(hub)
    (adapter / "tokenizer.json").write_text('{"other": 1}')
    pushing.push(adapter, "org/thing", revision="second")
    assert sent(hub) == main
    assert sent(hub, revision="second")["tokenizer.json"] == b'{"other": 1}'


def test_a_dry_run_changes_nothing(hub, adapter):
    done = pushing.push(adapter, "org/thing", dry_run=True)
    assert (done.made, done.commit) == (False, None)
    assert "adapter_model.safetensors" in done.files
    assert ("models", "org/thing") not in hub.repositories
    assert hub.calls.keys() == {"info"}


def test_files_of_an_earlier_push_go_and_those_of_others_stay(hub, adapter):
    pushing.push(adapter, "org/thing")
    files = dict(hub["org/thing"].at("main")[1])
    hub.add("org/thing", files | {"picture.png": b"mine", "model.safetensors": b"merged"})
    done = pushing.push(adapter, "org/thing")
    assert "picture.png" in sent(hub)
    assert "model.safetensors" not in sent(hub)
    assert "removed what an earlier push left: model.safetensors" in done.notes


def test_a_private_push_never_goes_to_a_public_repository(hub, adapter):
    hub.add("org/thing", {"README.md": b"public"})
    with pytest.raises(HubError, match="org/thing is public, and this push is private"):
        pushing.push(adapter, "org/thing")
    assert sent(hub) == {"README.md": b"public"}
    assert pushing.push(adapter, "org/thing", private=False).made


def test_a_private_repository_stays_private(hub, adapter):
    pushing.push(adapter, "org/thing")
    done = pushing.push(adapter, "org/thing", private=False)
    assert hub["org/thing"].private
    assert "org/thing was private already, and stays so" in done.notes


@pytest.mark.parametrize(
    ("call", "fault", "said"),
    [
        ("create", Fault(401), "the Hub does not know you (401): log in with `hf auth login`"),
        ("create", Fault(403), "your token may not write to org/thing (403)"),
        ("commit", Fault(404, error="RepoNotFound"), "org/thing is not there, or your token may not"),
        ("preupload", Fault(403, error="GatedRepo"), "org/thing is gated: accept its terms at"),
        ("commit", Fault(413), "larger than the Hub takes (413): push the adapter instead"),
        (
            "commit", Fault(429, headers={"Retry-After": "86400"}),
            "too many requests from you (429): wait 86,401 s",
        ),
        ("batch", Fault(429, headers={"Retry-After": "86400"}), "too many requests from you (429)"),
        ("commit", Fault(409), "is being changed by someone else (409)"),
        ("commit", Fault(500), "the Hub itself is in trouble (500)"),
        ("put", Fault(503), "the Hub itself is in trouble (503)"),
        ("commit", Fault(), f"the connection to {'http://127'}"),
        ("commit", Fault(400), "the Hub refuses these files (400)"),
        ("info", Fault(429, headers={"Retry-After": "86400"}), "too many requests from you (429)"),
        ("info", Fault(403, error="GatedRepo"), "is gated: accept its terms at"),
        ("validate", Fault(503), "the Hub itself is in trouble (503)"),
        ("validate", Fault(429), "too many requests from you (429): wait some minutes"),
        ("info", Fault(502), "the Hub itself is in trouble (502)"),
        ("tree", Fault(401), "the Hub does not know you (401)"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_every_kind_of_failure_has_its_sentence(call, fault, said, hub, adapter):
    hub.fault = lambda name: fault if name == call else None
    with pytest.raises(HubError) as raised:
        pushing.push(adapter, "org/thing")
    line = str(raised.value)
    assert said in line, line
    assert f"your model is safe at {adapter}; repeat with: toolkit push {adapter} org/thing" in line
    assert "\n" not in line
    assert ("models", "org/thing") not in hub.repositories or not sent(hub)


def test_a_card_that_the_hub_refuses_is_named_with_its_reason(hub, adapter):
    hub.card_errors = ['"license" must be one of [apache-2.0, mit]']
    with pytest.raises(HubError) as raised:
        pushing.push(adapter, "org/thing")
    assert (
        'the Hub refuses the card (400): Invalid metadata in README.md. - "license" must be one of'
        in str(raised.value)
    )
    assert hub.calls["commit"] == 0


def test_the_time_limit_holds_for_what_is_asked_before_anything_is_sent(hub, adapter):
    hub.fault = lambda name: Fault(503) if name == "info" else None
    started = time.monotonic()
    with pytest.raises(HubError, match=r"in trouble \(503\)"):
        pushing.push(adapter, "org/thing", seconds=0.001)
    assert hub.calls["info"] == 1
    assert time.monotonic() - started < 30


def test_pictures_go_with_the_card_that_shows_them(hub, adapter):
    log = [{"step": step, "loss": 1.0, "learning_rate": 0.1} for step in (1, 2)]
    (adapter / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    plots.draw("sft", adapter, pytest.fail)
    stage = {"stage": "sft", "name": "sft", "recipe": {"stage": "sft"}, "outputs": {}}
    (adapter / "stage.json").write_text(json.dumps(stage))
    pushing.push(adapter, "org/thing")
    pushed = sent(hub)
    assert pushed["plots/training.png"] == (adapter / plots.TRAINING).read_bytes()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", pushed["README.md"].decode())
    assert shown == ["plots/training.png"]
    (adapter / plots.TRAINING).unlink()  # the stage is whole without it
    done = pushing.push(adapter, "org/thing")
    assert "plots/training.png" not in sent(hub)
    assert "removed what an earlier push left: plots/training.png" in done.notes


def test_what_passes_is_tried_again_after_the_head_was_read(hub, adapter):
    """A commit whose answer is lost was made all the same; a second one would be refused."""
    left = [Fault(done=True), None]
    hub.fault = lambda name: left.pop(0) if name == "commit" and left else None
    assert pushing.push(adapter, "org/thing").made
    assert hub.calls["commit"] == 1
    assert len(hub["org/thing"].commits) == 2


def test_a_repository_whose_creation_was_not_answered_is_taken(hub, adapter):
    left = [Fault(done=True), Fault(500), None]
    hub.fault = lambda name: left.pop(0) if name == "create" and left else None
    assert pushing.push(adapter, "org/thing").made
    assert hub["org/thing"].private
    assert hub.calls["create"] == 3


def test_other_bytes_at_the_end_are_found(hub, adapter):
    def spoil(name: str) -> None:
        if name == "commit":
            hub.objects = dict.fromkeys(hub.objects, b"spoiled")

    hub.fault = spoil
    with pytest.raises(HubError, match=r"holds other bytes than were sent in adapter_model\.saf"):
        pushing.push(adapter, "org/thing")


KINDS = {
    "500": Fault(500), "503": Fault(503), "429": Fault(429, headers={"Retry-After": "1"}),
    "lost before": Fault(), "lost after": Fault(done=True),
}  # fmt: skip
WRITING = ("create", "validate", "preupload", "batch", "put", "verify", "commit")


@pytest.mark.parametrize("number", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_pushes_with_every_fifth_call_failing(number, hub, adapter, tmp_path):
    """Every commit holds one whole push, and what is downloaded is what lay in the folder."""
    chance = random.Random(7)
    struck: set[tuple[str, str]] = set()

    def faulty(name: str) -> Fault | None:
        if chance.random() >= 0.2:
            return None
        kind = chance.choice(sorted(KINDS))
        struck.add((name, kind))
        return KINDS[kind]

    whole: dict[str, list[dict[str, bytes]]] = {}
    ends = dict.fromkeys(("failed", "made", "unchanged"), 0)
    for at in range(number):
        repo = f"org/thing-{at // 10}"
        change(adapter, chance)
        scratch = tmp_path / f"sent-{at}"
        scratch.mkdir()
        files, _ = pushing.prepare(adapter, repo, scratch, private=True)
        sent_now = {name: path.read_bytes() for name, path in files.items()}
        whole.setdefault(repo, [{}]).append(sent_now)
        job = {"repo": repo, "files": files, "private": True, "revision": "main"}
        hub.fault = faulty
        ended = hub_commit.carry_out({**job, "seconds": 600}, lambda line: None)
        hub.fault = lambda name: None
        there = sent(hub, repo) if ("models", repo) in hub.repositories else {}
        if "error" in ended:
            ends["failed"] += 1
            assert there in whole[repo]
            continue
        ends["made" if ended["made"] else "unchanged"] += 1
        assert there == sent_now
        if at % 10 == 9:
            check_download(repo, sent_now, tmp_path / f"got-{at}")
    assert ends["failed"] <= number // 40
    assert ends["unchanged"] >= number // 10
    for repo, pushes in whole.items():
        for tree in hub[repo].commits.values():
            assert {n: data for n, data in tree.items() if n != ".gitattributes"} in pushes
    assert len(struck) > 10
    if number == 200:
        assert {name for name, _ in struck} >= set(WRITING)
        assert {(name, kind) for name in ("put", "commit") for kind in KINDS} <= struck


def change(folder: Path, chance: random.Random) -> None:
    """Train on, or add or lose a file, or leave everything as it is."""
    kind = chance.choice(["weights", "weights", "more", "less", "nothing"])
    if kind == "weights":
        (folder / "adapter_model.safetensors").write_bytes(weights(chance, 20_000))
    elif kind == "more":
        (folder / "generation_config.json").write_text(json.dumps({"seed": chance.random()}))
        (folder / "value").mkdir(exist_ok=True)
        (folder / "value" / "adapter_model.safetensors").write_bytes(weights(chance, 5_000))
    elif kind == "less":
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "value" / "adapter_model.safetensors").unlink(missing_ok=True)


def check_download(repo: str, expected: dict[str, bytes], place: Path) -> None:
    got = Path(snapshot_download(repo, cache_dir=place, endpoint=constants.ENDPOINT, max_workers=1))
    found = {
        file.relative_to(got).as_posix(): file.read_bytes()
        for file in got.rglob("*")
        if file.is_file() and file.name != ".gitattributes"
    }
    assert found == expected


def push_in_a_shell(hub: Hub | str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = environment(hub, home / "cache") | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "toolkit", "push", *words], env=os.environ | variables,
        capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip


def test_the_command_pushes_and_says_what(hub, adapter, tmp_path):
    done = push_in_a_shell(hub, tmp_path, str(adapter), "org/thing")
    assert done.returncode == 0, done.stderr
    assert f"pushed: {hub.endpoint}/org/thing/commit/" in done.stdout
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  adapter_model.safetensors" in done.stdout
    assert (
        sent(hub)["adapter_model.safetensors"]
        == (adapter / "adapter_model.safetensors").read_bytes()
    )
    hub.fault = lambda name: Fault(403) if name == "commit" else None
    (adapter / "tokenizer.json").write_text('{"new": 1}')
    done = push_in_a_shell(hub, tmp_path, str(adapter), "org/thing")
    assert done.returncode == 6
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "your token may not write to org/thing (403)" in line


def test_a_push_that_hangs_is_ended(hub, adapter, monkeypatch):
    """Nothing that the pushing process does, or does not do, keeps it alive."""
    monkeypatch.undo()
    for name, value in environment(hub, adapter.parent / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pushing, "GRACE_S", 1)
    job = {"repo": "org/thing", "files": {}, "private": True, "revision": "main", "seconds": 1}
    hub.fault = lambda name: Fault(wait=60)
    started = time.monotonic()
    with pytest.raises(HubError, match=r"did not end within 1 s and was stopped|connection to"):
        pushing.in_a_process(job)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{none}", "org/thing"], "no such folder"),
        (["{empty}", "org/thing"], "expected an adapter or a model"),
        (["{adapter}", "thing"], "expected NAMESPACE/NAME, such as your-name/sft"),
        (["{adapter}", "org/th ing"], "org/th ing: "),
    ],
)
def test_a_wrong_command_line_is_code_2(words, said, adapter, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"none": tmp_path / "none", "empty": tmp_path / "empty", "adapter": adapter}
    assert cli.main(["push", *(word.format(**places) for word in words)]) == 2
    assert said in capsys.readouterr().err
