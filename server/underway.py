"""The turns that are under way, the gate before them, and which weights each of them has seen.

While the base's weights are exchanged new turns wait at `settled`. A turn that an exchange cuts in two is told so when
it leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server import metrics


class Underway:
    def __init__(self) -> None:
        self._turns: Counter[str] = Counter()
        self._timeline: list[str] = []  # the weights, exchange by exchange
        self._open = asyncio.Event()
        self._open.set()

    def of(self, version: str) -> int:
        return self._turns[version]

    @property
    def any(self) -> bool:
        return bool(self._turns)

    async def settled(self) -> None:
        """Returns at once, except while the gate is closed. Nothing may be awaited between this and `enter`."""
        while not self._open.is_set():  # it may have been closed again before this task's turn came
            await self._open.wait()

    def enter(self, version: str) -> int:
        self._turns[version] += 1
        return len(self._timeline)

    def leave(self, version: str, epoch: int) -> list[str] | None:
        """The versions that had a part in the turn, when it was more than one."""
        self._turns[version] -= 1
        if self._turns[version] <= 0:
            del self._turns[version]
        versions = list(dict.fromkeys([version, *self._timeline[epoch:]]))
        if len(versions) == 1:
            return None
        metrics.mixed_replies_total.inc()
        return versions

    def exchanged(self, version: str) -> None:
        """The engine has, or is about to have, these weights."""
        self._timeline.append(version)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """New turns wait; those that run go on."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def ended(self, within_seconds: float) -> bool:
        """Whether all that run have ended in time."""
        deadline = time.monotonic() + within_seconds
        while self._turns and time.monotonic() < deadline:  # noqa: ASYNC110 - rare, short and bounded
            await asyncio.sleep(0.01)
        return not self._turns
