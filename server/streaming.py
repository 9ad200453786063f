"""A response whose body is being written while its reader may go away, or stop reading.

Plain ASGI: Starlette's StreamingResponse costs a task group and two context switches per chunk, and a chunk is a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.errors import ServerError

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
]


class SlowReader(ServerError):
    """The reader took nothing for as long as the server is willing to wait."""


class Outlet:
    """Writes one streamed body. Nothing is sent, not even the status, before the first `write`."""

    def __init__(self, send: Send, timeout_seconds: float) -> None:
        self._send = send
        self._timeout_seconds = timeout_seconds
        self.started = False

    async def write(self, body: bytes, *, more: bool = True) -> None:
        if not self.started:
            self.started = True
            await self._sent({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._sent({"type": "http.response.body", "body": body, "more_body": more})

    async def _sent(self, message: Message) -> None:
        sending = self._send(message).__await__()
        try:
            waits_for = next(sending)
        except StopIteration:
            return  # nearly always: the reader keeps up, and a timer for every token would cost more than the token
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await _Rest(sending, waits_for)
        except TimeoutError:
            raise SlowReader from None


class _Rest:
    """Awaits what was begun by hand and is waiting for something."""

    def __init__(self, begun: Generator[Any, Any, None], waits_for: Any) -> None:
        self._begun, self._waits_for = begun, waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
        except BaseException as error:
            try:
                waits_for = self._begun.throw(error)
            except StopIteration:
                return
            yield waits_for
        yield from self._begun


class Watched(Response):
    """Runs `work` for as long as the reader is there; when it leaves, `work` is cancelled.

    `work` sends the whole response itself, errors included, through the ASGI arguments that it is given.
    """

    def __init__(self, work: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._work = work
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        working = asyncio.ensure_future(self._work(scope, receive, send))
        # A task that is cancelled before its first step never reaches its own clean-up: let it get there.
        await asyncio.sleep(0)
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        with suppress(asyncio.CancelledError):
            working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
