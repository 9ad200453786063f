"""Which system prompt a user gets. Where the request brings none of its own, the operator's choice is put first.

As with policies, users are cut by a salted hash, so each keeps the arm, and its probability is logged with the reply.
What is in use is read from the database every second at most, and only while people chat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from sqlmodel import Session

from feedback.schema import PromptUse
from feedback.system_prompts import texts_in_use
from server.cached import Cached
from server.routing import position

_FRESH_SECONDS = 1.0

_InUse = tuple[list[PromptUse], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Chosen:
    version: str
    text: str
    propensity: float


@dataclass(frozen=True, slots=True)
class InUse:
    """One use, ready to choose from. Pure."""

    salt: str
    arms: tuple[Chosen, ...]  # with their weights as propensities

    def of(self, user_id: str) -> Chosen | None:
        at = position(user_id, self.salt)
        for arm in self.arms:
            at -= arm.propensity
            if at < 0:
                return arm
        return self.arms[-1] if self.arms else None  # weights may add up to a little less than 1

    def two(self, draw: Random) -> tuple[Chosen, Chosen] | None:
        """Two different ones on random sides, for a comparison, each pair as often as another."""
        if len(self.arms) < 2:
            return None
        propensity = 1 / (len(self.arms) * (len(self.arms) - 1))
        left, right = (replace(arm, propensity=propensity) for arm in draw.sample(self.arms, 2))
        return left, right


class PromptBook:
    def __init__(self, read: Callable[[Callable[[Session], _InUse]], Awaitable[_InUse]]) -> None:
        async def look_up() -> Mapping[str | None, InUse]:
            return _by_key(*await read(texts_in_use))

        self._in_use = Cached(look_up, _FRESH_SECONDS)

    async def use_for(self, key_id: str | None) -> InUse | None:
        """Raises StorageError."""
        by_key = await self._in_use.get()
        return by_key.get(key_id) or by_key.get(None)

    def forget(self) -> None:
        """What was decided here holds from the next request on; other replicas follow within a second."""
        self._in_use.forget()


def _by_key(uses: Sequence[PromptUse], texts: Mapping[str, str]) -> dict[str | None, InUse]:
    return {
        use.key_id: InUse(
            use.salt, tuple(Chosen(arm["version"], texts[arm["version"]], arm["weight"]) for arm in use.arms or ())
        )
        for use in uses
    }


def with_prompt(messages: Sequence[dict[str, Any]], chosen: Chosen | None) -> list[dict[str, Any]]:
    return [*messages] if chosen is None else [{"role": "system", "content": chosen.text}, *messages]


def has_prompt(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message["role"] == "system" for message in messages)
