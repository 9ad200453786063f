"""One response and the turns behind it: a reply, the choices of one request, or the two sides of a comparison.

The turns share a fate. Whatever ends one of them early ends all, because half an answer cannot be used, and the end
is told when every one of them is durable. Says when things are sent, and what becomes of the turns; how an answer is
spelled is its subclass's matter.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from feedback.errors import FeedbackError
from server.engine import Chunk
from server.errors import ApiError, EngineDead, EngineError, RequestRefused, error_body
from server.limits import Allowance
from server.routing import CANARY, STABLE
from server.services import Services
from server.streaming import Outlet, SlowReader, Watched
from server.turn import Turn
from server.wire import DONE, KEEPALIVE, error_event

STOPPING = (503, "the server is stopping", "stopping")


class Answer(ABC):
    def __init__(self, services: Services, turns: Sequence[Turn], allowance: Allowance) -> None:
        self.services = services
        self.turns = turns
        self._allowance = allowance
        allowance.spend(len(turns[0].question.prompt_token_ids))  # all turns have the one prompt

    @abstractmethod
    def said(self, at: int, chunk: Chunk) -> bytes:
        """A chunk of `turns[at]` as it goes over the wire; perhaps nothing."""

    @abstractmethod
    def usage(self) -> bytes:
        """What a stream says before its end, when it was asked for usage."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Everything at once, for a request that does not stream."""

    @property
    def track(self) -> str:
        """Canary where the candidate has a part."""
        return CANARY if CANARY in {turn.track for turn in self.turns} else STABLE

    def response(self, *, stream: bool, include_usage: bool = False) -> Response:
        async def work(scope: Scope, receive: Receive, send: Send) -> None:
            for turn in self.turns:
                turn.task = asyncio.current_task()
            if stream:
                await self._stream(scope, receive, send, include_usage=include_usage)
            else:
                await self._at_once(scope, receive, send)

        return Watched(work)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, *, include_usage: bool) -> None:
        outlet = Outlet(send, self.services.settings.send_timeout_seconds)
        try:
            async with aclosing(self._heard()) as heard:
                async for at, chunk in heard:
                    if chunk is None:
                        await outlet.write(KEEPALIVE)
                        continue
                    written = self.said(at, chunk)
                    if written:
                        await outlet.write(written)
                    self._shown(at, chunk)
            await self._each(Turn.complete)
            end = self.usage() if include_usage else b""
            await outlet.write(end + DONE, more=False)
        except asyncio.CancelledError:
            if not self._interrupted:
                await self._each(lambda turn: turn.stop("disconnected"))
                raise
            await self._each(Turn.cut)
            await _break_off(outlet, scope, *STOPPING)
        except SlowReader:
            await self._each(lambda turn: turn.stop("slow_reader"))
        except (EngineError, FeedbackError, ApiError) as error:
            await self._give_up(error)
            status, message, code = told(error)
            if outlet.started:
                await _break_off(outlet, scope, status, message, code)
            else:
                await refusal(status, message, code)(scope, receive, send)

    async def _at_once(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._heard()) as heard:
                async for at, chunk in heard:
                    if chunk is not None:
                        self._shown(at, chunk)
            await self._each(Turn.complete)
        except asyncio.CancelledError:
            for turn in self.turns:
                turn.nothing_shown()
            if not self._interrupted:
                await self._each(lambda turn: turn.stop("disconnected"))
                raise
            await self._each(Turn.cut)
            await refusal(*STOPPING)(scope, receive, send)
            return
        except (EngineError, FeedbackError, ApiError) as error:
            await self._give_up(error)
            await refusal(*told(error))(scope, receive, send)
            return
        await Response(orjson.dumps(self.whole()), media_type="application/json")(scope, receive, send)

    def _shown(self, at: int, chunk: Chunk) -> None:
        self.turns[at].shown(chunk)
        self._allowance.spend(len(chunk.token_ids))

    async def _heard(self) -> AsyncGenerator[tuple[int, Chunk | None], None]:
        """What each turn says, as it comes. The first failure ends all."""
        keepalive_seconds = self.services.settings.keepalive_seconds
        if len(self.turns) == 1:  # nearly always: a token is spared the way through the queue
            async with aclosing(self.turns[0].heard(keepalive_seconds)) as chunks:
                async for chunk in chunks:
                    yield 0, chunk
            return
        # Bounded: a reader of the response that is slow slows all generations' reading, not the memory.
        arrived: asyncio.Queue[tuple[int, Chunk | Exception | None, bool]] = asyncio.Queue(maxsize=8)

        async def read(at: int) -> None:
            try:
                async with aclosing(self.turns[at].heard(keepalive_seconds)) as chunks:
                    async for chunk in chunks:
                        await arrived.put((at, chunk, False))
                await arrived.put((at, None, True))
            except Exception as error:  # not handled here: raised where all are read
                await arrived.put((at, error, True))

        readers = [asyncio.create_task(read(at)) for at in range(len(self.turns))]
        try:
            running = len(readers)
            while running:
                at, item, ended = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                if ended:
                    running -= 1
                else:
                    yield at, item
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)

    @property
    def _interrupted(self) -> bool:
        return any(turn.interrupted for turn in self.turns)

    async def _each(self, end: Callable[[Turn], Awaitable[None]]) -> None:
        """Ends all of them, whatever becomes of one; the first failure is raised when all have ended."""
        results = await asyncio.gather(*map(end, self.turns), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _give_up(self, error: Exception) -> None:
        reason = (
            "storage" if isinstance(error, FeedbackError) else "safety" if isinstance(error, ApiError) else "engine"
        )
        await self._each(lambda turn: turn.fail(reason))


async def _break_off(outlet: Outlet, scope: Scope, status: int, message: str, code: str | None) -> None:
    """End a stream with an error event. The request is counted with this status, though it began with 200."""
    scope["state"]["ended_as"] = status
    await outlet.write(error_event(status, message, code), more=False)


def told(error: Exception) -> tuple[int, str, str | None]:
    """The status, words and code for a failure of the engine, the database or the safety filter."""
    if isinstance(error, ApiError):
        return error.status, error.message, error.code
    if isinstance(error, FeedbackError):
        return error.status, str(error), error.code
    if isinstance(error, RequestRefused):
        return 400, f"the engine refused the request: {error}", "invalid_value"
    if isinstance(error, EngineDead):
        return 503, "the engine died; it is being started again", "engine_dead"
    return 500, "the engine failed", "engine_error"


def refusal(status: int, message: str, code: str | None) -> JSONResponse:
    headers = {"retry-after": "2"} if status == 503 else None
    return JSONResponse(error_body(status, message, code=code), status_code=status, headers=headers)
