"""The application: `/v1/chat/completions`, `/v1/models` and `/health`."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from toolkit.errors import DataError, ToolkitError
from toolkit.inference.engine import Completion, Prompt, Sampling
from toolkit.inference.serving.answers import DONE, Head, event
from toolkit.inference.serving.asked import Asked, asked_for, check_model, read
from toolkit.inference.serving.guard import Door, Guard, refused
from toolkit.inference.serving.refusal import Refusal
from toolkit.inference.serving.scheduler import Full, Job, Scheduler
from toolkit.inference.thinking.steps import own_seeds
from toolkit.inference.writing import Progress

T = TypeVar("T")
Render = Callable[[Sequence[Mapping[str, Any]]], list[int]]
CLOSED = 499  # what servers note where a client has gone; nobody reads it


@dataclass
class Service:
    """What is served.

    Attributes:
        scheduler: has answers written.
        models: by the names that clients use, the adapters of the engine.
        render: the tokens of a conversation.
        max_tokens: of an answer.
        door: who may come in.
        created: when it began, in seconds since 1970.
    """

    scheduler: Scheduler
    models: Mapping[str, str | None]
    render: Render
    max_tokens: int
    door: Door
    created: int = field(default_factory=lambda: int(time.time()))
    lock: Any = field(default_factory=threading.Lock)

    def prompt_ids(self, asked: Asked) -> list[int]:
        """The tokens of a conversation.

        Raises:
            Refusal: if the chat template refuses it.
        """
        try:
            with self.lock:
                return self.render(asked.messages)
        except DataError as error:
            raise Refusal(400, str(error), param="messages") from error

    def job(self, asked: Asked, input_ids: list[int], tell: Any) -> Job:
        """What has to be written for a request.

        Raises:
            Refusal: if it asks for more than there may be.
        """
        at_once = self.scheduler.at_once
        if asked.n > at_once:
            raise Refusal(400, f"n: expected at most {at_once}, found {asked.n}", param="n")
        longest = self.longest(asked, len(input_ids))
        seed = secrets.randbits(48) if asked.seed is None else asked.seed
        adapter = self.models[asked.model]
        prompts = [
            Prompt(
                input_ids, own_seeds(seed, index) if index else seed, asked.stop, adapter=adapter,
                max_tokens=longest,
            )
            for index in range(asked.n)
        ]  # fmt: skip
        return Job(prompts, Sampling(self.max_tokens, asked.temperature, asked.top_p), tell)

    def longest(self, asked: Asked, length: int) -> int:
        """How many tokens an answer may have."""
        if (asked.max_tokens or 0) > self.max_tokens:
            found = f"max_tokens: expected at most {self.max_tokens:,}, found {asked.max_tokens:,}"
            raise Refusal(400, found, param="max_tokens")
        positions = self.scheduler.engine.positions
        room = positions - length if positions else self.max_tokens
        if room < (asked.max_tokens or 1):
            wanted = f" and {asked.max_tokens:,} of an answer" if asked.max_tokens else ""
            raise Refusal(
                400, f"{length:,} tokens of prompt{wanted} are more than the {positions:,} of the model",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        return asked.max_tokens or min(self.max_tokens, room)


def application(service: Service) -> Guard:
    """The ASGI application of a service, behind its door."""

    async def chat_completions(request: Request) -> Response:
        return await answered(service, request)

    async def models(request: Request) -> Response:
        listed = [model_entry(service, name) for name in service.models]
        return JSONResponse({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        check_model(name, service.models)
        return JSONResponse(model_entry(service, name))

    async def health(request: Request) -> Response:
        draining = service.door.is_draining
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    routes = [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
    ]
    handlers: Any = {Refusal: on_refusal, HTTPException: on_http}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), service.door)


async def on_refusal(request: Request, error: Refusal) -> Response:
    """A request that is not answered."""
    return refused(error)


async def on_http(request: Request, error: HTTPException) -> Response:
    """What is no route, or another method of one."""
    said = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return refused(Refusal(error.status_code, said, headers=error.headers))


def model_entry(service: Service, name: str) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    return {"id": name, "object": "model", "created": service.created, "owned_by": "toolkit"}


async def answered(service: Service, request: Request) -> Response:
    """Answer a chat completion request, whole or as a stream."""
    asked = asked_for(read(await request.body()))
    check_model(asked.model, service.models)
    input_ids = await asyncio.to_thread(service.prompt_ids, asked)
    head = Head(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.model)
    news = written(service, asked, input_ids)
    if not asked.stream:
        completions = await unless_gone(request, gathered(news, asked.n))
        if completions is None:
            return Response(status_code=CLOSED)
        return JSONResponse(head.whole(completions, len(input_ids)))
    # what is wrong from the start has a status of its own
    first = await unless_gone(request, anext(news))
    if first is None:
        return Response(status_code=CLOSED)
    stream = streamed(head, asked, len(input_ids), first, news)
    return Stream(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


class Stream(StreamingResponse):
    """A stream that is closed, and so given up, however the response ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        body: Any = self.body_iterator
        async with aclosing(body):
            await super().__call__(scope, receive, send)


async def written(
    service: Service, asked: Asked, input_ids: list[int]
) -> AsyncIterator[tuple[int, Progress]]:
    """What comes of a request: which answer, and what is new of it. Left early, it is given up.

    Raises:
        Refusal: if it asks for too much, too many ask, it takes too long, or something fails.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Progress | Exception]] = asyncio.Queue()

    def tell(index: int, news: Progress | Exception) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(queue.put_nowait, (index, news))

    job = service.job(asked, input_ids, tell)
    try:
        service.scheduler.submit(job)
    except Full as error:
        raise Refusal(
            429, "too many requests are waiting; try again soon", headers={"Retry-After": "1"}
        ) from error
    deadline = loop.time() + service.door.seconds
    left = asked.n
    try:
        while left:
            try:
                async with asyncio.timeout_at(deadline):
                    index, news = await queue.get()
            except TimeoutError as error:
                said = f"the answer was not done within {service.door.seconds:g} s"
                raise Refusal(504, said, code="timeout") from error
            if isinstance(news, Exception):
                said = str(news) if isinstance(news, ToolkitError) else "the server failed"
                raise Refusal(500, said) from news
            left -= news.completion is not None
            yield index, news
    finally:
        service.scheduler.cancel(job)


async def gathered(news: AsyncIterator[tuple[int, Progress]], n: int) -> list[Completion]:
    """All answers, when they have ended."""
    found: dict[int, Completion] = {}
    async with aclosing(news):  # type: ignore[type-var]
        async for index, each in news:
            if each.completion is not None:
                found[index] = each.completion
    return [found[index] for index in range(n)]


async def streamed(
    head: Head,
    asked: Asked,
    prompt_tokens: int,
    first: tuple[int, Progress],
    news: AsyncIterator[tuple[int, Progress]],
) -> AsyncIterator[bytes]:
    """The events of a stream."""
    total = 0
    for index in range(asked.n):
        yield head.piece(index, {"role": "assistant", "content": ""})
    try:
        async with aclosing(news):  # type: ignore[type-var]
            async for index, each in preceded(first, news):
                if each.text:
                    yield head.piece(index, {"content": each.text})
                if each.completion is not None:
                    total += len(each.completion.input_ids)
                    yield head.piece(index, {}, each.completion)
    except Refusal as refusal:
        yield event(refusal.body())
        return
    if asked.include_usage:
        yield head.counts(prompt_tokens, total)
    yield DONE


async def preceded(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    """What came first, and what comes then."""
    yield first
    async for each in rest:
        yield each


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What comes of work; None, and the work given up, if the client goes away before."""
    gone = asyncio.ensure_future(left(request))
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, doing}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (gone, doing):
            task.cancel()
        with suppress(asyncio.CancelledError, Refusal):
            await asyncio.gather(gone, doing, return_exceptions=True)


async def left(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
