"""What many ask for, looked up once for all of them, and again when it is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cached(Generic[T]):
    def __init__(self, look_up: Callable[[], Awaitable[T]], fresh_seconds: float) -> None:
        self._look_up, self._fresh_seconds = look_up, fresh_seconds
        self._at = float("-inf")
        self._found: T
        self._forgotten = False
        self._looking = asyncio.Lock()

    async def get(self) -> T:
        """Raises what looking up raises; the next one then looks again."""
        if self._is_old():
            async with self._looking:
                if self._is_old():
                    self._forgotten = False
                    self._found = await self._look_up()
                    if not self._forgotten:  # meanwhile: then this may be from before
                        self._at = time.monotonic()
        return self._found

    def forget(self) -> None:
        """What is asked from now on is looked up from now on."""
        self._at, self._forgotten = float("-inf"), True

    def _is_old(self) -> bool:
        return time.monotonic() - self._at > self._fresh_seconds
