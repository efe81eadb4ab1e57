"""`toolkit serve`: which models it serves, where it may listen, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests import served
from toolkit import cli
from toolkit.errors import RecipeError, UsageError
from toolkit.stages import serve as module
from toolkit.stages.served import Served, served_models
from toolkit.stages.vllm_serve import vllm_words

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return served.save_run(tmp_path_factory.mktemp("served"))


HELD = """
import pathlib, sys, time
from toolkit.cli import main
from toolkit.inference.sampling import TransformersEngine

go_on, gate, calls = TransformersEngine.go_on, pathlib.Path(sys.argv[1]), []

def held(self, batch, left, sampling, steps):
    calls.append(1)
    while len(calls) > 2 and not gate.exists():
        time.sleep(0.02)
    return go_on(self, batch, left, sampling, steps)

TransformersEngine.go_on = held
sys.exit(main(sys.argv[2:]))
"""


def test_sigterm_finishes_what_is_running_and_ends_with_0(run, tmp_path):
    gate = tmp_path / "gate"
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(gate), "serve", str(run), "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = [process.stdout.readline().strip() for _ in range(2)]
        assert said[0] == "models: sft, ppo, base"
        body = {
            "model": "ppo", "messages": [{"role": "user", "content": "hello"}], "stream": True,
            "temperature": 0, "max_tokens": 40,
        }  # fmt: skip
        with (
            httpx2.Client(base_url=said[1].split("/v1")[0], timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while client.get("/health").status_code == 200:
                pass
            assert client.post("/v1/chat/completions", json=body).status_code == 503
            gate.touch()
            last = [line for line in lines if line][-2:]
        assert '"finish_reason":"length"' in last[0]
        assert last[1] == "data: [DONE]"
        assert process.wait(60) == 0
    finally:
        gate.touch()
        process.kill()


def test_a_port_that_is_taken_and_a_host_that_others_reach(run, tmp_path, monkeypatch):
    from toolkit.inference.serving.server import listening

    monkeypatch.delenv(module.TOKEN, raising=False)
    with listening("127.0.0.1", 0) as sock, pytest.raises(UsageError, match="cannot listen there"):
        module.serve(str(run), port=sock.getsockname()[1])
    for host in ("0.0.0.0", "::", "example.org", "192.168.0.4"):
        with pytest.raises(UsageError, match="can be reached from other machines: put a token"):
            module.serve(str(run), host=host)
    assert all(map(module.is_loopback, ("localhost", "127.0.0.1", "127.3.4.5", "::1")))
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(UsageError, match="at least 16 plain letters"):
        module.serve(str(run), host="0.0.0.0", token_file=str(tmp_path / "token"))
    with pytest.raises(UsageError, match="cannot be read"):
        module.serve(str(run), token_file=str(tmp_path / "none"))


def test_where_a_token_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv(module.TOKEN, "of-the-environment")
    assert module.token_of(None) == "of-the-environment"
    (tmp_path / "token").write_text("of-the-file-of-mine\n")
    assert module.token_of(str(tmp_path / "token")) == "of-the-file-of-mine"
    monkeypatch.setenv(module.TOKEN, "two words of a token")
    with pytest.raises(UsageError, match=module.TOKEN):
        module.token_of(None)


def test_which_models_of_a_run_are_served(run, tmp_path, capsys):
    base = str(run.parent / "base")
    both = {name: str(run / name) for name in ("sft", "ppo")}
    assert served_models(str(run), None) == Served(both, base)
    assert served_models(str(run), "sft") == Served({"sft": str(run / "sft")}, base)
    assert served_models(str(run / "ppo"), None) == Served({"ppo": str(run / "ppo")}, base)
    assert served_models(base, None) == Served({"base": base}, None)
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "sft" / "adapter_config.json"
    config.write_text(config.read_text().replace(base, "/another/base"))
    found = served_models(str(tmp_path / "run"), None)
    assert list(found.places) == ["ppo"]
    assert "sft is not served" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="a stage that answers"):
        served_models(str(tmp_path), None)


def test_a_base_that_cannot_chat_is_told(tiny_base, run, tmp_path, capsys):
    with pytest.raises(RecipeError, match="no chat template, so it cannot chat"):
        module.engine_of(served_models(str(tiny_base), None), [], module.Limits())
    shutil.copytree(run.parent, tmp_path / "all")
    (tmp_path / "all" / "base" / "chat_template.jinja").unlink()
    config = tmp_path / "all" / "run" / "sft" / "adapter_config.json"
    found = json.loads(config.read_text())
    found["base_model_name_or_path"] = str(tmp_path / "all" / "base")
    config.write_text(json.dumps(found))
    _, models = module.engine_of(
        served_models(str(tmp_path / "all" / "run" / "sft"), None), [], module.Limits()
    )
    assert list(models) == ["sft"]
    assert "base is not served: it has no chat template" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_is_missing_is_named(run, monkeypatch):
    with pytest.raises(UsageError, match="expected transformers or vllm"):
        module.serve(str(run), backend="other")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'toolkit\[serve\]'"):
        module.serve(str(run))


def test_vllm_is_started_with_every_stage_and_the_token_out_of_sight(
    run, tmp_path, monkeypatch, capsys
):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    called = []
    monkeypatch.setattr(os, "execve", lambda *given: called.append(given))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="vLLM is not installed here"):
        module.serve(str(run), backend="vllm")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(module.TOKEN, "a-token-for-vllm")
    module.serve(str(run), port=9000, backend="vllm")
    ((path, words, environment),) = called
    assert path == words[0] == str(program)
    assert environment["VLLM_API_KEY"] == "a-token-for-vllm"
    assert "a-token" not in "".join(words) + capsys.readouterr().out
    assert words[1:] == vllm_words(
        served_models(str(run), None), host="127.0.0.1", port=9000, max_concurrency=16
    )


def test_the_command_line_of_vllm(run):
    base = str(run.parent / "base")
    given = {"host": "127.0.0.1", "port": 8000, "max_concurrency": 4}
    listens = ["--host", "127.0.0.1", "--port", "8000", "--max-num-seqs", "4"]
    assert vllm_words(served_models(str(run), None), **given) == [
        "serve", base, "--served-model-name", "base", *listens, "--enable-lora",
        "--max-lora-rank", "8", "--max-loras", "2", "--chat-template",
        str(run / "ppo" / "chat_template.jinja"), "--lora-modules", f"sft={run / 'sft'}",
        f"ppo={run / 'ppo'}",
    ]  # fmt: skip
    whole = vllm_words(Served({"mine": base}, None), **given)
    assert whole == ["serve", base, "--served-model-name", "mine", *listens]


def test_the_command_line_is_read(monkeypatch):
    called = {}
    monkeypatch.setattr(module, "serve", lambda run, words, **given: called.update(given) or 0)
    assert (
        cli.main(["serve", "RUN", "--max_queue", "3", "--request_timeout", "9", "--port", "1"]) == 0
    )
    assert called["limits"] == module.Limits(max_queue=3, request_timeout=9.0)
    assert called["port"] == 1
    assert cli.main(["serve", "RUN", "--port", "x"]) == 2
