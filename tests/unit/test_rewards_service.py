"""GRPO against a reward service that hangs, errs, talks nonsense and dies: it finishes, and counts."""

import json
import math
import random
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

import toolkit
from tests import tiny_ppo
from toolkit.errors import TrainingError

BATCH = 4
KINDS = ("scores", "scores", "scores", "hangs", "errs", "garbage", "infinity", "too few")


class Service:
    """Scores texts by HTTP on this machine, or does something else.

    Args:
        seed: of what it does.
    """

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.asked: list[str] = []  # an id per request
        self.kinds: list[str] = []
        self.closing = threading.Event()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, again at the same port."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                service.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Die."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request: what was drawn."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        kind = self.draw.choice(KINDS)
        self.asked.append(body["id"])
        self.kinds.append(kind)
        scores = json.dumps({"scores": [len(text) / 10 for text in body["texts"]]})
        said = {
            "garbage": "<html>busy</html>", "infinity": '{"scores": [1, 2, Infinity, null]}',
            "too few": '{"scores": [1]}',
        }  # fmt: skip
        if kind == "hangs":
            self.closing.wait(30)
            return
        request.send_response(500 if kind == "errs" else 200)
        request.end_headers()
        request.wfile.write(said.get(kind, scores).encode())


@pytest.fixture
def serve():
    started = []

    def start(seed=0):
        started.append(Service(seed))
        return started[-1]

    yield start
    for each in started:
        each.closing.set()
        each.stop()


def trained(base, folder, judge, steps=8, **keys):
    return toolkit.grpo(
        model_name_or_path=str(base), output_dir=str(folder), lora_r=4, reward_funcs=[judge],
        train_dataset=tiny_ppo.prompts(), max_steps=steps, per_device_train_batch_size=BATCH,
        num_generations=BATCH, max_completion_length=6, logging_steps=1, save_strategy="no",
        report_to="none", **keys,
    )  # fmt: skip


def asks(service, given, *, dies=()):
    """An async reward that asks the service, once per call, and notes what it is given."""
    calls = iter(range(10**6))
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading the world's certificates takes long

    async def judge(prompts, completions, **columns):
        call = next(calls)
        if call in dies:
            (service.stop if dies.index(call) % 2 == 0 else service.start)()
        texts = [completion[-1]["content"] for completion in completions]
        body = {"id": f"call {call}", "texts": texts}
        async with httpx2.AsyncClient(trust_env=False, timeout=None, verify=plain) as client:
            answer = await client.post(f"http://127.0.0.1:{service.port}/score", json=body)
        answer.raise_for_status()
        given.append(answer.json()["scores"])
        return given[-1]

    return judge


@tiny_ppo.quiet
@pytest.mark.parametrize(("seed", "steps", "dies"), [
    (57, 14, (5, 8)),
    pytest.param(3, 80, (8, 14, 30, 36), marks=pytest.mark.slow),
    pytest.param(4, 80, (0, 20, 21, 30, 70, 77), marks=pytest.mark.slow),
])  # fmt: skip
def test_training_goes_on_and_every_sample_is_accounted_for(
    seed, steps, dies, tiny_base, tmp_path, serve, capsys
):
    service, given = serve(seed), []
    result = trained(
        tiny_base, tmp_path / "run", asks(service, given, dies=dies), steps,
        on_reward_error="skip", max_reward_errors=1.0, reward_timeout=3.0,
    )  # fmt: skip
    counts = result.manifest["rewards"]["judge"]
    assert len(set(service.asked)) == len(service.asked), "once each"
    assert {*KINDS} == {*service.kinds}, "everything happened"
    whole = [score for scores in given if len(scores) == BATCH for score in scores]
    unscored, odd = whole.count(None), whole.count(math.inf)
    assert counts == {
        "scored": len(whole) - unscored - odd, "unscored": unscored,
        "failed": steps * BATCH - len(whole) + odd,
    }  # fmt: skip
    assert counts["scored"] > BATCH
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    shares = [line["rewards/judge/failed"] for line in lines if "rewards/judge/failed" in line]
    assert len(shares) == steps
    assert sum(shares) / steps == pytest.approx(counts["failed"] / (steps * BATCH))
    means = [line["rewards/judge/mean"] for line in lines if "rewards/judge/mean" in line]
    assert all(mean is None or mean != mean or abs(mean) < 100 for mean in means)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("left out and counted, as all that follow (on_reward_error: skip)") == 1
    assert f"reward judge: {counts['failed']} of {steps * BATCH} completions (" in said


@tiny_ppo.quiet
def test_a_service_that_stays_away_ends_training(tiny_base, tmp_path, serve):
    service = serve()
    with pytest.raises(
        TrainingError, match=r"reward judge raised ConnectError: .* failed for 24 of"
    ):
        trained(tiny_base, tmp_path / "run", asks(service, [], dies=(0,)), on_reward_error="skip")
    service.start()


@tiny_ppo.quiet
def test_without_a_word_in_the_recipe_the_first_failure_ends_training(tiny_base, tmp_path, serve):
    service = serve()
    service.stop()
    with pytest.raises(TrainingError, match="reward judge raised ConnectError"):
        trained(tiny_base, tmp_path / "run", asks(service, []))
    service.start()
