"""How the event loop waits for what the ledger's thread writes.

By hand what asyncio.wrap_future and asyncio.timeout do together, at a fraction of what they cost: a vote does little
else. A batch is written at once, so its results cross to the loop at once; and one timer watches over all who wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

from feedback.errors import StorageBusy

T = TypeVar("T")


async def durable(written: Future[T], within_seconds: float) -> T:
    """What it came to, or raises its error. Raises StorageBusy when that takes too long; it may be written later."""
    future: asyncio.Future[T] = _waiting_of(asyncio.get_running_loop()).wait(written, within_seconds)
    return await future


class _Waiting:
    """Who waits in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._written: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._is_told = False
        self._deadlines: list[tuple[float, int, asyncio.Future[Any]]] = []  # a heap
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, written: Future[T], within_seconds: float) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._forget()
        heappush(self._deadlines, (self._loop.time() + within_seconds, next(self._numbers), future))
        self._watch()
        written.add_done_callback(partial(self._is_written, future))
        return future

    def _is_written(self, future: asyncio.Future[Any], written: Future[Any]) -> None:  # in the ledger's thread
        self._written.append((written, future))
        if not self._is_told and not self._loop.is_closed():
            self._is_told = True
            self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        self._is_told = False  # first: what is appended from here on is found below, or told of anew
        while self._written:
            written, future = self._written.popleft()
            if future.done():  # nobody waits any more
                continue
            error = written.exception()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(written.result())

    def _forget(self) -> None:
        while self._deadlines and self._deadlines[0][2].done():
            heappop(self._deadlines)

    def _watch(self) -> None:
        """A timer for the first deadline. One that is too early is let be: when it comes, it sets the next."""
        first = self._deadlines[0][0]
        if self._timer is not None and self._timer.when() <= first:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(first, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._forget()
        while self._deadlines and self._deadlines[0][0] <= self._loop.time():
            *_, future = heappop(self._deadlines)
            future.set_exception(StorageBusy("the database did not answer in time; try again"))
            self._forget()
        if self._deadlines:
            self._watch()


@lru_cache(maxsize=4)  # a server has one loop
def _waiting_of(loop: asyncio.AbstractEventLoop) -> _Waiting:
    return _Waiting(loop)
