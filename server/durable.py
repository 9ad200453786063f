"""How the event loop waits for what the ledger's thread writes.

By hand what asyncio.wrap_future and asyncio.timeout do together, in half of their time: a vote does little else.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from feedback.errors import StorageBusy

T = TypeVar("T")


async def durable(written: Future[T], within_seconds: float) -> T:
    """What it came to, or raises its error. Raises StorageBusy when that takes too long; it may be written later."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def is_written(_: Future[T]) -> None:  # in the ledger's thread
        if not loop.is_closed():
            loop.call_soon_threadsafe(_pass_on, written, future)

    written.add_done_callback(is_written)
    timer = loop.call_later(within_seconds, _give_up, future)
    try:
        return await future
    finally:
        timer.cancel()


def _pass_on(written: Future[T], future: asyncio.Future[T]) -> None:
    if future.done():  # nobody waits any more
        return
    error = written.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(written.result())


def _give_up(future: asyncio.Future[T]) -> None:
    if not future.done():
        future.set_exception(StorageBusy("the database did not answer in time; try again"))
