"""The benchmark of peers, without their environments."""

import re

import pytest
import yaml
from rich.console import Console

from tests.benchmarks import cpu, cpu_rows, scaling
from tests.benchmarks.peers import __main__ as peers
from tests.benchmarks.peers import step

SMALL = cpu_rows.SHAPES["22M"]
TOKENS = cpu_rows.Tokens(real=1698, padded=3856, labelled=795, squares=488_824)


def found(seconds, loss=10.4984, **more):
    return {
        "steps": [seconds, seconds], "first": 20.0, "peak": 1_500_000_000, "loss": loss,
        "real": 1698, "labelled": 795, "trained": SMALL.lora(),
    } | more  # fmt: skip


@pytest.fixture
def bench():
    invented = cpu.Bench("22M", tokens=TOKENS)
    said = {"versions": "axolotl 0.19.0 (trl 1.9.0)", "leak": 0.0}
    invented.rounds["sft", "axolotl-bf16"] = [found(4.0, **said), found(6.0, **said)]
    invented.rounds["sft", "ours"] = [found(2.0), found(2.0)]
    return invented


def lengths_of(shape):
    rows = cpu_rows.rows_of("sft", shape, 1, cpu_rows.words())
    return [len(f"{row['prompt']}{row['completion']}".split()) + cpu_rows.END for row in rows]


@pytest.mark.parametrize("peer", peers.PEERS)
def test_an_environment_is_pinned_to_the_last_package(peer):
    lines = (peers.HERE / f"{peer}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 30
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), pin
    assert {"torch==2.13.0", "psutil==7.2.2", "PyYAML==6.0.3"} <= set(pins)
    assert any(pin.startswith(f"{peer}==") for pin in pins)


@pytest.mark.parametrize("precision", ["true", "false"])
@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peer_is_given_the_same_work_and_its_best_switches(peer, precision):
    room = step.room(lengths_of(SMALL))
    given = step.filled(
        peer, base="B", data="D", batch=8, steps=3, room=room, bf16=precision
    )  # fmt: skip
    assert "{" not in yaml.safe_dump(given)
    assert given["packing" if peer == "llamafactory" else "sample_packing"] is True
    assert given.get("disable_gradient_checkpointing") or given["gradient_checkpointing"] is False
    assert given["bf16"] is (precision == "true")
    assert "sdpa" in (given.get("flash_attn"), given.get("attn_implementation"))
    assert given["learning_rate"] == 1e-5  # a number, which 1e-5 is not in yaml
    assert {given.get("lora_rank"), given.get("lora_r")} == {16, None}
    assert {given.get("cutoff_len"), given.get("sequence_len")} < {872, 1024, None}
    assert given["max_steps"] == 3


def test_packs_hold_the_rows_of_a_step():
    lengths = lengths_of(SMALL)
    assert sum(lengths) == TOKENS.real
    assert step.first_fit(lengths, 1024) == step.first_fit(lengths, 871) == 2
    assert step.first_fit(lengths, 863) == 3
    assert step.first_fit(lengths, TOKENS.real) == 1
    assert step.room(lengths) == 872
    assert step.room([13, 31]) == 32  # and the longest is not cut
    assert step.room([20, 12, 16, 16]) == 40  # one token stays free
    assert step.room([13, 31], packs=1) == 48


def test_both_begin_the_line_with_the_result_alike():
    assert cpu.FOUND == step.FOUND == scaling.FOUND
    assert set(peers.PEERS) == set(step.PEERS)
    assert {*peers.STACKS, peers.BESIDE} <= set(cpu.STACKS)


def test_the_table_in_the_page(bench, tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nbefore\n")
    peers.keep(bench, page)
    first = page.read_text() + "\nafter\n"
    page.write_text(first)
    peers.keep(bench, page)
    assert page.read_text() == first  # in its place, and not once more
    lines = [line for line in first.splitlines() if line.startswith("|")]
    assert lines[2] == "| ours | 2 | 1.00 [1.00-1.00] | 20.0 | 1,500 | 10.4984 |"
    assert lines[3] == "| axolotl-bf16 | 5 | 2.50 [2.00-3.00] | 20.0 | 1,500 | 10.4984 |"
    assert "2 rounds" in first
    assert "axolotl 0.19.0 (trl 1.9.0)" in first
    assert first.index("<!-- peers 22M -->") < first.index("<!-- end of peers 22M -->")
    with Console(width=120, record=True) as console:
        peers.show(bench, console)
    assert "2.50 [2.00-3.00]" in console.export_text()


def test_other_work_is_refused(bench):
    peers.check(bench, "axolotl-bf16", found(1.0, leak=0.0))
    for name in ("real", "labelled", "trained"):
        with pytest.raises(RuntimeError, match=f"ours trained .*{name}"):
            peers.check(bench, "ours", found(1.0) | {name: 1})
    with pytest.raises(RuntimeError, match="see each other"):
        peers.check(bench, "axolotl-bf16", found(1.0, leak=0.5))


def test_every_stack_in_every_round(monkeypatch, tmp_path):
    seen = []

    def own(*words, folder):
        seen.append(words[2])
        return found(1.0)

    def theirs(python, *words, folder):
        assert python == tmp_path / words[0] / "bin" / "python"
        seen.append(f"{words[0]}-{words[-1]}")
        return found(2.0, leak=0.0)

    monkeypatch.setattr(cpu, "ask", own)
    monkeypatch.setattr(peers, "ask", theirs)
    monkeypatch.setattr(
        peers, "write", lambda *_: {"sft": cpu_rows.rows_of("sft", SMALL, 3, cpu_rows.words())}
    )
    (tmp_path / "axolotl" / "bin").mkdir(parents=True)
    (tmp_path / "axolotl" / "bin" / "python").touch()
    bench = peers.measure(tmp_path, ["axolotl"], "22M", rounds=2)
    assert bench.tokens == TOKENS
    assert seen == seen[::-1]  # there and back
    assert len(seen) == 2 * (len(peers.STACKS) + 2)
    assert set(seen) == {*peers.STACKS, "axolotl-bf16", "axolotl-fp32"}
    assert bench.gain("sft", "ours", "axolotl-fp32") == 2.0


def test_a_missing_environment_says_what_makes_it(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        peers.main([str(tmp_path), "--peer", "axolotl"])
    said = str(stopped.value)
    assert "\n" not in said
    assert f"python -m tests.benchmarks.peers install {tmp_path} --peer axolotl" in said
