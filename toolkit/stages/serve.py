"""`toolkit serve`: a finished run answers over HTTP, every stage by its name, all over one base."""

import copy
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.data.control_tokens import check_spoken
from toolkit.data.template_render import Template
from toolkit.errors import RecipeError, UsageError
from toolkit.inference.engine import BASE
from toolkit.inference.sampling import TransformersEngine
from toolkit.models.load import load_tokenizer
from toolkit.models.same_words import check_same_words
from toolkit.stages.generate import policy_of
from toolkit.stages.requests import rendered
from toolkit.stages.served import Served, served_models
from toolkit.stages.terminal import note

TOKEN = "TOOLKIT_SERVE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        max_tokens: of an answer.
        max_concurrency: answers that are written at a time.
        max_queue: answers that wait beyond those.
        max_body_bytes: of a request.
        request_timeout: seconds from a request to the end of its answer.
    """

    max_tokens: int = 1024
    max_concurrency: int = 16
    max_queue: int = 64
    max_body_bytes: int = 1024 * 1024
    request_timeout: float = 300.0


def serve(
    run: str,
    words: Sequence[str] = (),
    *,
    stage: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    limits: Limits | None = None,
    backend: str = "transformers",
) -> int:
    """Serve a run until a signal comes; what is being answered then is finished.

    Args:
        run: the folder of a run, of a stage or of a model, or a Hub id.
        words: flags of stage rank that say how models are loaded, such as `--dtype`.
        stage: of a run, the one stage that is served; by default all that write answers.
        host: where it listens; beyond this machine with a token only.
        port: likewise; 0 for any that is free.
        token_file: holds the token; else the environment variable TOOLKIT_SERVE_TOKEN may.
        limits: what it takes on.
        backend: "transformers", or "vllm" to start `vllm serve` instead.

    Returns:
        The exit code: 0 when it has drained.

    Raises:
        UsageError: if it may not listen there, or something is not installed.
        RecipeError: if there is no such model, or it cannot chat.
    """
    limits = limits or Limits()
    if backend not in ("transformers", "vllm"):
        raise UsageError(f"--backend: expected transformers or vllm, found {backend!r}")
    token = token_of(token_file)
    if not is_loopback(host) and token is None:
        raise UsageError(
            f"--host {host} can be reached from other machines: put a token into {TOKEN}, or into a "
            "file and name it with --token_file"
        )
    found = served_models(run, stage)
    if backend == "vllm":
        from toolkit.stages.vllm_serve import start

        return start(found, host=host, port=port, token=token, limits=limits)
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        raise UsageError("toolkit serve needs two more packages: pip install 'toolkit[serve]'")
    return listen(found, words, host, port, token, limits)


def listen(
    found: Served, words: Sequence[str], host: str, port: int, token: str | None, limits: Limits
) -> int:
    """Load what is served and answer; arguments as of `serve`."""
    from toolkit.inference.serving.guard import LOCAL
    from toolkit.inference.serving.server import listening

    try:
        sock = listening(host, port)  # before minutes of loading
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror}"
        ) from error
    with sock:
        engine, models = engine_of(found, words, limits)
        hosts = frozenset({*LOCAL, host.lower()}) if is_loopback(host) else None
        server, scheduler = server_of(engine, models, limits, hosts, token)
        scheduler.start()
        place = f"[{host}]" if ":" in host else host
        with_token = " with a token" if token else ""
        note(f"models: {', '.join(models)}")
        note(f"http://{place}:{sock.getsockname()[1]}/v1{with_token}; Ctrl-C ends it")
        sys.stdout.flush()
        server.run(sockets=[sock])
        scheduler.close()
    return 0


def server_of(
    engine: TransformersEngine,
    models: Mapping[str, str | None],
    limits: Limits,
    hosts: frozenset[str] | None,
    token: str | None,
) -> tuple[Any, Any]:
    """A server, and the scheduler of what it is asked; neither has been started.

    Args:
        engine: writes.
        models: by the names that clients use, the adapters of the engine.
        limits: what is taken on.
        hosts: what requests may call this server; None for any.
        token: what clients have to show.
    """
    from toolkit.inference.serving.app import Service, application
    from toolkit.inference.serving.guard import Door
    from toolkit.inference.serving.scheduler import Scheduler
    from toolkit.inference.serving.server import DrainingServer

    scheduler = Scheduler(engine, at_once=limits.max_concurrency, waiting=limits.max_queue)
    shown = token.encode() if token else None
    door = Door(hosts, shown, limits.max_body_bytes, limits.request_timeout)
    service = Service(scheduler, models, Rendering(engine), limits.max_tokens, door)
    connections = 2 * (limits.max_concurrency + limits.max_queue) + 32
    return DrainingServer(application(service), door, connections=connections), scheduler


class Rendering:
    """A conversation as the engine's model reads it, by a tokenizer of its own: threads share none.

    Args:
        engine: whose tokenizer it is.
    """

    def __init__(self, engine: TransformersEngine):
        self.tokenizer = copy.deepcopy(engine.tokenizer)
        self.template = Template(self.tokenizer)

    def __call__(self, messages: Any) -> list[int]:
        """The tokens.

        Raises:
            DataError: if the template refuses it, or somebody spells out a control token.
        """
        check_spoken(self.tokenizer, messages)
        return rendered(messages, None, self.tokenizer, self.template)


def engine_of(
    found: Served, words: Sequence[str], limits: Limits
) -> tuple[TransformersEngine, dict[str, str | None]]:
    """The engine with every adapter that fits on one base, and what each model's adapter is called.

    Args:
        found: what is to be served.
        words: flags of stage rank.
        limits: of the server.

    Raises:
        RecipeError: if the first model cannot chat, or a flag is wrong.
    """
    (first, place), *others = found.places.items()
    examined, _ = policy_of(place, words)
    tokenizer = examined.load_tokenizer()
    if not tokenizer.chat_template:
        raise RecipeError(
            f"{place}: it has no chat template, so it cannot chat; serve what was trained on chats, "
            "such as what stage sft has made"
        )
    engine = TransformersEngine(examined.load_model(), tokenizer, batch_size=limits.max_concurrency)
    models: dict[str, str | None] = {first: None}
    for number, (name, folder) in enumerate(others, 1):
        try:
            engine.add_adapter(f"served{number}", folder)
            models[name] = f"served{number}"
        except RecipeError as error:
            note(f"{name} is not served: {error}")
    if found.base is not None and BASE not in models:
        try:
            check_base(found, tokenizer)
            models[BASE] = BASE
        except RecipeError as error:
            note(f"base is not served: {error}")
    return engine, models


def check_base(found: Served, tokenizer: Any) -> None:
    """Refuse a base that was not made to chat, or otherwise than its adapters.

    Raises:
        RecipeError: saying so.
    """
    assert found.base is not None
    own = load_tokenizer(found.base, revision=found.revision)
    if not own.chat_template:
        raise RecipeError("it has no chat template")
    check_same_words(found.base, tokenizer)


def token_of(file: str | None) -> str | None:
    """The token that clients have to show: of a file, else of the environment.

    Raises:
        UsageError: if it cannot be read, or is none.
    """
    if file is None:
        found, where = os.environ.get(TOKEN), TOKEN
        if found is None:
            return None
    else:
        where = f"--token_file {file}"
        try:
            found = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}: cannot be read: {error}") from error
    token = found.strip()
    if (
        len(token) < SHORTEST_TOKEN
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        raise UsageError(
            f"{where}: expected a token of at least {SHORTEST_TOKEN} plain letters on one line, found "
            f"{len(token)}; such as of: openssl rand -hex 24"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine only."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
