"""Waiting for the ledger: its results and errors as they are, a bound, and nobody hurt by what comes too late."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from feedback.errors import StorageBusy, UnknownTarget
from server.durable import durable


def test_what_another_thread_writes_comes_as_it_is() -> None:
    async def wait() -> int:
        written: Future[int] = Future()
        threading.Timer(0.05, written.set_result, [7]).start()
        return await durable(written, 30)

    assert asyncio.run(wait()) == 7


def test_what_is_written_already_is_not_waited_for() -> None:
    written: Future[int] = Future()
    written.set_result(7)
    assert asyncio.run(durable(written, 30)) == 7


def test_an_error_is_the_very_same() -> None:
    written: Future[int] = Future()
    error = UnknownTarget("none such")
    written.set_exception(error)
    with pytest.raises(UnknownTarget) as raised:
        asyncio.run(durable(written, 30))
    assert raised.value is error


def test_what_takes_too_long_is_busy_and_hurts_nobody_when_it_comes() -> None:
    troubles: list[dict[str, Any]] = []

    async def wait() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        written: Future[int] = Future()
        with pytest.raises(StorageBusy, match="try again"):
            await durable(written, 0.01)
        written.set_result(7)
        await asyncio.sleep(0.01)
        assert written.result() == 7

    asyncio.run(wait())
    assert troubles == []


def test_who_goes_away_cancels_nothing_but_the_waiting() -> None:
    async def wait() -> None:
        written: Future[int] = Future()
        waiting = asyncio.create_task(durable(written, 30))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not written.cancelled()
        written.set_result(7)
        await asyncio.sleep(0.01)

    asyncio.run(wait())


def test_the_ledger_outlives_a_loop_that_has_ended() -> None:
    written: Future[int] = Future()

    async def go() -> None:
        with pytest.raises(StorageBusy):
            await durable(written, 0.01)

    asyncio.run(go())
    written.set_result(7)  # as the ledger's thread does it; an error of a callback would only be logged
    assert written.result() == 7


def test_each_has_its_own_bound_whoever_waited_first() -> None:
    async def wait() -> list[str]:
        ended: list[str] = []

        async def busy(name: str, seconds: float) -> None:
            with pytest.raises(StorageBusy):
                await durable(Future(), seconds)
            ended.append(name)

        await asyncio.gather(busy("long", 0.3), busy("short", 0.05), busy("between", 0.15))
        return ended

    assert asyncio.run(wait()) == ["short", "between", "long"]


def test_what_a_batch_wrote_crosses_to_the_loop_at_once() -> None:
    async def wait() -> tuple[list[int], int]:
        loop, crossings = asyncio.get_running_loop(), 0
        cross = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal crossings
            crossings += 1
            return cross(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        batch: list[Future[int]] = [Future() for _ in range(50)]
        waiting = [asyncio.create_task(durable(written, 30)) for written in batch]
        await asyncio.sleep(0)

        def write() -> None:
            for number, written in enumerate(batch):
                written.set_result(number)

        writer = threading.Thread(target=write)
        writer.start()
        writer.join()  # the loop stands still meanwhile
        return await asyncio.gather(*waiting), crossings

    assert asyncio.run(wait()) == (list(range(50)), 1)
