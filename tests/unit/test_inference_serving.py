"""The server over real HTTP on this machine: right answers, limits kept, nobody waits for the gone."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import served
from toolkit.errors import TrainingError
from toolkit.inference.sampling import TransformersEngine
from toolkit.inference.serving.guard import LOCAL
from toolkit.inference.serving.scheduler import Scheduler
from toolkit.inference.serving.server import IDLE_S, listening
from toolkit.stages.serve import Limits, engine_of, server_of
from toolkit.stages.served import served_models

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
TOKEN = "a-token-for-this-test"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return served.save_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def loaded(run):
    return engine_of(served_models(str(run), None), [], Limits())


@contextmanager
def serving(loaded, hosts=LOCAL, token=None, **limits):
    """A server on a free port; gives a client, the server and the scheduler."""
    engine, models = loaded
    server, scheduler = server_of(engine, models, Limits(**limits), hosts, token)
    with listening("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        scheduler.start()
        thread.start()
        place = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx2.Client(base_url=place, timeout=60) as client:
            yield client, server, scheduler
        server.door.is_draining = True
        thread.join(30)
        scheduler.close()
        scheduler.thread.join(30)
        assert not thread.is_alive()
        assert not scheduler.thread.is_alive()


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded, max_tokens=256) as (client, _, _):
        yield client


def ask(client, **changed):
    body = {"model": "sft", "messages": HELLO, "max_tokens": 24, "temperature": 0} | changed
    return client.post(CHAT, json=body)


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def texts(found):
    return [each["message"]["content"] for each in found.json()["choices"]]


@contextmanager
def slow_steps(monkeypatch, seconds=0.02, gate=None):
    """Steps take some time, and wait for the gate from the third on; gives whose they were."""
    seen = []
    go_on = TransformersEngine.go_on

    def slowly(self, batch, left, sampling, steps):
        seen.append([prompt.adapter for prompt in left])
        time.sleep(seconds)
        assert gate is None or len(seen) < 3 or gate.wait(60)
        return go_on(self, batch, left, sampling, 1)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "go_on", slowly)
        yield seen


def until(condition):
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_every_model_answers_as_plain_peft_does(client, run):
    words = AutoTokenizer.from_pretrained(run / "sft")
    prompt = words.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt")
    answers = {}
    for name in ("base", "sft", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(run.parent / "base")
        if name != "base":
            model = PeftModel.from_pretrained(model, run / name)
        made = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
        new = made[prompt["input_ids"].shape[1] :]
        answers[name] = words.decode(new, skip_special_tokens=True)
        found = ask(client, model=name)
        assert found.status_code == 200
        assert texts(found) == [answers[name]]
        assert found.json()["usage"] == {
            "prompt_tokens": prompt["input_ids"].shape[1],
            "completion_tokens": len(new),
            "total_tokens": made.shape[0],
        }
    assert len(set(answers.values())) == 3


def test_a_stream_is_the_answer_in_pieces(client):
    asked = {"temperature": 1.0, "seed": 7, "n": 3, "max_tokens": 60, "stop": ["q", "ab"]}
    whole = ask(client, **asked).json()
    assert whole["choices"] == ask(client, **asked).json()["choices"], "a seed reproduces"
    assert len({each["message"]["content"] for each in whole["choices"]}) == 3
    options = {"stream": True, "stream_options": {"include_usage": True}}
    found = ask(client, **asked, **options)
    assert found.headers["content-type"].startswith("text/event-stream")
    pieces = events(found)
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    for index, choice in enumerate(whole["choices"]):
        mine = [p["choices"][0] for p in pieces[:-1] if p["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        said = "".join(each["delta"].get("content", "") for each in mine)
        assert said == choice["message"]["content"]
        ends = [each["finish_reason"] for each in mine]
        assert ends == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        assert len(mine) > 3


def test_many_at_once_get_what_each_gets_alone(loaded, monkeypatch):
    asked = [
        {"model": name, "messages": [{"role": "user", "content": f"{n} {'x' * n}"}], "seed": n,
         "temperature": heat, "max_tokens": 6 + n}
        for n, (name, heat) in enumerate(
            [("sft", 1), ("ppo", 1), ("base", 0), ("sft", 1), ("ppo", 1), ("sft", 0), ("sft", 1), ("ppo", 0.5)]
        )
    ]  # fmt: skip
    gate = threading.Event()
    with serving(loaded) as (client, _, scheduler):
        alone = [texts(ask(client, **each)) for each in asked]
        with slow_steps(monkeypatch, 0, gate) as seen, ThreadPoolExecutor(8) as pool:
            running = [pool.submit(ask, client, **each) for each in asked]
            until(lambda: scheduler.load == 8)
            gate.set()
            together = [texts(each.result()) for each in running]
    assert together == alone
    assert max(map(len, seen)) > 1, "requests of one kind are written together"
    assert all(len(set(adapters)) == 1 for adapters in seen)


def test_who_comes_later_joins_and_a_short_one_does_not_wait_for_a_long_one(loaded, monkeypatch):
    long = {"model": "sft", "messages": HELLO, "max_tokens": 1000, "temperature": 0, "stream": True}
    with serving(loaded) as (client, _, scheduler), slow_steps(monkeypatch) as seen:
        with client.stream("POST", CHAT, json=long) as response:
            pieces = response.iter_text()  # if it was dropped, so would be the connection
            next(pieces)
            assert ask(client, max_tokens=3, model="ppo").status_code == 200
            assert ask(client, max_tokens=3).status_code == 200
            assert scheduler.load == 1, "the long one is still written"
        assert max(map(len, seen)) == 2
        until(lambda: scheduler.load == 0)


def test_more_than_may_wait_are_sent_away(loaded, monkeypatch):
    gate = threading.Event()
    with (
        serving(loaded, max_concurrency=2, max_queue=1) as (client, _, scheduler),
        slow_steps(monkeypatch, gate=gate),
        ThreadPoolExecutor(3) as pool,
    ):
        running = [pool.submit(ask, client, max_tokens=5, n=n) for n in (2, 1)]
        until(lambda: scheduler.load == 3)
        found = ask(client, max_tokens=2)
        gate.set()
        assert found.status_code == 429
        assert found.headers["retry-after"] == "1"
        assert found.json()["error"]["type"] == "rate_limit_error"
        assert [each.result().status_code for each in running] == [200, 200]
        assert ask(client, n=3).json()["error"]["param"] == "n"


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_written_for_a_client_that_has_gone(loaded, monkeypatch, stream):
    # so slow that no answer ends by chance before its client goes
    with serving(loaded) as (client, server, scheduler), slow_steps(monkeypatch, 0.2) as seen:
        body = {"model": "sft", "messages": HELLO, "max_tokens": 900, "stream": stream}
        if stream:
            with client.stream("POST", CHAT, json=body) as response:
                next(response.iter_text())
        else:
            with pytest.raises(httpx2.TimeoutException):
                client.post(CHAT, json=body, timeout=0.5)
        until(lambda: scheduler.load == 0)
        until(lambda: server.door.running == 0)
        assert len(seen) < 200


def test_an_answer_that_takes_too_long_is_given_up(loaded, monkeypatch):
    with serving(loaded, request_timeout=0.4) as (client, server, scheduler):
        with slow_steps(monkeypatch):
            found = ask(client, max_tokens=900)
            assert found.status_code == 504
            assert "within 0.4 s" in found.json()["error"]["message"]
            lines = ask(client, max_tokens=900, stream=True).text.strip().split("\n\n")
            assert "timeout" in json.loads(lines[-1].removeprefix("data: "))["error"]["code"]
            until(lambda: scheduler.load == 0)
        server.door.seconds = 60.0
        assert ask(client, max_tokens=3).status_code == 200


def test_a_failure_is_told_and_the_server_goes_on(loaded, monkeypatch, capsys):
    with serving(loaded) as (client, _, _):
        for error, said in (
            (TrainingError("not enough memory"), "not enough memory"),
            (ValueError("a secret of the inside"), "the server failed"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(
                    TransformersEngine, "go_on", lambda *_, e=error: (_ for _ in ()).throw(e)
                )
                found = ask(client)
            assert found.status_code == 500
            assert found.json()["error"]["message"] == said
        assert ask(client).status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(Scheduler, "_place", lambda *_: 1 / 0)
            assert ask(client).status_code == 500
        assert ask(client).status_code == 200
    assert "a secret of the inside" in capsys.readouterr().err


def test_limits_of_tokens_and_context(client):
    found = ask(client, max_tokens=257)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "max_tokens")
    long = [{"role": "user", "content": "x" * 2040}]
    found = ask(client, messages=long, max_tokens=None)
    assert found.json()["error"]["code"] == "context_length_exceeded"
    nearly = [{"role": "user", "content": "x" * 2000}]
    assert ask(client, messages=nearly, max_tokens=None).json()["usage"]["total_tokens"] <= 2048
    found = ask(client, messages=nearly, max_tokens=200)
    assert "more than the 2,048 of the model" in found.json()["error"]["message"]


def test_a_long_body_is_refused_with_and_without_its_length(loaded):
    with serving(loaded, max_body_bytes=1000) as (client, _, _):
        body = json.dumps({"model": "sft", "messages": [{"role": "user", "content": "x" * 990}]})
        assert client.post(CHAT, content=body, headers=JSON).status_code == 413
        pieces = (body[at : at + 100].encode() for at in range(0, len(body), 100))
        found = client.post(CHAT, content=pieces, headers=JSON)
        assert found.status_code == 413
        assert found.json()["error"]["message"] == "expected a body of at most 1,000 bytes"


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"headers": {"Host": "evil.example"}}, 421, "not called"),
        ({"headers": {"Host": "127.0.0.1.evil.example:80"}}, 421, "not called"),
        ({"headers": {"Content-Type": "text/plain"}}, 415, "Content-Type"),
        ({"content": b"{"}, 400, "no JSON"),
        ({"content": b"3"}, 400, "found a number"),
        ({"json": {"model": "gpt", "messages": HELLO}}, 404, 'no model "gpt"; known: sft, ppo, base'),
        ({"json": {"model": "sft", "messages": HELLO, "logprobs": True}}, 400, "logprobs"),
        ({"json": {"model": "sft", "messages": [{"role": "user", "content": "<|endoftext|>"}]}}, 400,
         "control token"),
        ({"url": "/v1/completions"}, 404, "Not Found"),
        ({"url": "/v1/models"}, 405, "Not Allowed"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(client, asked, status, said):
    given = {"url": CHAT, **asked}
    given["headers"] = JSON | given.get("headers", {})
    found = client.post(**given)
    assert found.status_code == status
    assert said in found.json()["error"]["message"]
    assert not any(key.startswith("access-control") for key in found.headers)


def test_models_and_health(client):
    listed = client.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["sft", "ppo", "base"]
    assert client.get("/v1/models/ppo").json()["id"] == "ppo"
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}


def test_a_token_is_asked_for_and_any_host_may_be_called(loaded):
    with serving(loaded, hosts=None, token=TOKEN) as (client, _, _):
        for shown in ("", "Bearer x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \xe9"):
            headers = {"Authorization": shown.encode("latin-1")}
            for found in (
                client.get("/v1/models", headers=headers),
                client.post(CHAT, headers=headers),
            ):
                assert found.status_code == 401
                assert found.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in found.text
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert client.get("/v1/models", headers={"Host": "gpu.example"}).status_code == 200
        assert ask(client).status_code == 200
        assert httpx2.get(client.base_url.join("/health")).status_code == 200


def test_what_drains_finishes_and_takes_nothing_more(loaded, monkeypatch):
    gate = threading.Event()
    with (
        serving(loaded) as (client, server, _),
        slow_steps(monkeypatch, gate=gate) as seen,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(ask, client, max_tokens=12, stream=True)
        until(lambda: len(seen) > 2)
        server.handle_exit(15, None)
        found = ask(client)
        health = client.get("/health")
        gate.set()
        assert found.status_code == 503
        assert "retry-after" in found.headers
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        assert events(running.result())[-1]["choices"][0]["finish_reason"] == "length"


def test_a_connection_on_which_nothing_is_asked_is_closed(loaded):
    with serving(loaded) as (client, server, _):
        place = (client.base_url.host, client.base_url.port)
        with socket.create_connection(place, timeout=30) as silent:
            silent.sendall(b"GET /health HTTP/1.1\r\n")
            until(lambda: server.idle)
            server.close_idle(time.monotonic() + IDLE_S - 5)
            assert ask(client).status_code == 200
            server.close_idle(time.monotonic() + IDLE_S + 1)
            assert silent.recv(100) == b""
