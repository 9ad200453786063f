"""What many ask for is looked up once."""

import asyncio

import pytest

from server.cached import Cached


async def test_many_ask_and_one_looks() -> None:
    looks = 0

    async def look_up() -> int:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.01)
        return looks

    found = Cached(look_up, fresh_seconds=60.0)
    assert await asyncio.gather(*(found.get() for _ in range(20))) == [1] * 20
    found.forget()
    assert (await found.get(), await found.get()) == (2, 2)
    stale = Cached(look_up, fresh_seconds=0.0)
    assert (await stale.get(), await stale.get()) == (3, 4)


async def test_what_is_forgotten_while_somebody_looks_is_looked_up_again() -> None:
    truth = 1

    async def look_up() -> int:
        seen = truth
        await asyncio.sleep(0.02)
        return seen

    found = Cached(look_up, fresh_seconds=60.0)
    early = asyncio.create_task(found.get())
    await asyncio.sleep(0.01)
    truth = 2
    found.forget()
    assert (await early, await found.get()) == (1, 2)


async def test_who_cannot_look_says_so_and_the_next_one_looks_again() -> None:
    answers = iter([ValueError("the database is away"), 7])

    async def look_up() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = Cached(look_up, fresh_seconds=60.0)
    with pytest.raises(ValueError, match="away"):
        await found.get()
    assert await found.get() == 7
