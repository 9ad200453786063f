"""Writing a streamed body: to a reader that keeps up, one that falls behind, one that stops, one that goes."""

import asyncio
from typing import Any

import pytest

from server.streaming import Outlet, SlowReader


class Reader:
    """An ASGI `send` that takes a message at once, or when `room` says so."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.taken: list[bytes] = []
        self.cancelled = False

    async def send(self, message: Any) -> None:
        try:
            while not self.room.is_set():
                await asyncio.sleep(0)  # waits for more than one thing, one after another
                await self.room.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.taken.append(message.get("body", b""))


async def test_a_reader_that_falls_behind_gets_everything() -> None:
    reader = Reader()
    outlet = Outlet(reader.send, 5.0)
    await outlet.write(b"a")
    reader.room.clear()
    writing = asyncio.ensure_future(outlet.write(b"b"))
    await asyncio.sleep(0.02)
    assert not writing.done()
    reader.room.set()
    await writing
    await outlet.write(b"c", more=False)
    assert reader.taken == [b"", b"a", b"b", b"c"]


async def test_a_reader_that_stops_is_given_up() -> None:
    reader = Reader()
    outlet = Outlet(reader.send, 0.05)
    reader.room.clear()
    with pytest.raises(SlowReader):
        await outlet.write(b"a")
    assert reader.cancelled


async def test_who_writes_can_be_cancelled_while_the_reader_is_slow() -> None:
    reader = Reader()
    reader.room.clear()
    writing = asyncio.ensure_future(Outlet(reader.send, 5.0).write(b"a"))
    await asyncio.sleep(0.02)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert reader.cancelled


async def test_a_failure_to_send_comes_out() -> None:
    async def broken(message: Any) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await Outlet(broken, 5.0).write(b"a")
