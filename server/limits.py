"""Requests and tokens a minute, for each key and for each user: token buckets in this replica's memory.

A request is let in while all of its buckets hold something. What its reply costs is known as the reply is written, so
a bucket may fall below empty, and refills from there. Replicas do not tell each other: behind a load balancer each one
grants the whole limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server import metrics
from server.errors import ApiError
from server.identity import Identity
from server.settings import Settings

_MANY = 10_000  # buckets; beyond it those that are full, which is what a new one would be, are forgotten


class Bucket:
    """Holds at most `per_minute`, which is also what flows in each minute."""

    def __init__(self, per_minute: int, at: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = at

    def level(self, at: float) -> float:
        self._level = min(self.per_minute, self._level + (at - self._at) * self.per_minute / 60)
        self._at = at
        return self._level

    def take(self, amount: int, at: float) -> None:
        self._level = self.level(at) - amount

    def seconds_until(self, level: float, at: float) -> float:
        return max(0.0, (level - self.level(at)) * 60 / self.per_minute)


@dataclass(frozen=True)
class Limit:
    unit: str  # requests, tokens
    whose: str  # key, user
    bucket: Bucket


class Allowance:
    """What one request may still use, and is told of it."""

    def __init__(self, limits: Sequence[Limit], clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock

    def enter(self) -> None:
        """Raises ApiError 429 where a bucket is empty; then nothing is taken."""
        at = self._clock()
        for limit in self._limits:
            if limit.bucket.level(at) < 1:
                metrics.rate_limited_total.labels(limit.unit, limit.whose).inc()
                seconds = math.ceil(limit.bucket.seconds_until(1, at))
                raise ApiError(
                    429,
                    f"at most {limit.bucket.per_minute} {limit.unit} a minute for one {limit.whose}; "
                    f"try again in {seconds} s",
                    code="rate_limit_exceeded",
                    headers={"retry-after": str(seconds)},
                )
        self._take("requests", 1, at)

    def spend(self, tokens: int) -> None:
        if self._limits:
            self._take("tokens", tokens, self._clock())

    def _take(self, unit: str, amount: int, at: float) -> None:
        for limit in self._limits:
            if limit.unit == unit:
                limit.bucket.take(amount, at)

    def headers(self) -> dict[str, str]:
        """As OpenAI names them; of a key's and a user's limit the one with less left. The reset is until it is full."""
        at = self._clock()
        found: dict[str, str] = {}
        for unit in ("requests", "tokens"):
            buckets = [limit.bucket for limit in self._limits if limit.unit == unit]
            if buckets:
                tightest = min(buckets, key=lambda bucket: bucket.level(at))
                found[f"x-ratelimit-limit-{unit}"] = str(tightest.per_minute)
                found[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(tightest.level(at))))
                found[f"x-ratelimit-reset-{unit}"] = f"{tightest.seconds_until(tightest.per_minute, at):.3f}s"
        return found


class Limits:
    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates = {
            ("requests", "key"): settings.requests_per_minute_per_key,
            ("requests", "user"): settings.requests_per_minute_per_user,
            ("tokens", "key"): settings.tokens_per_minute_per_key,
            ("tokens", "user"): settings.tokens_per_minute_per_user,
        }
        self._buckets: dict[tuple[str, str, str], Bucket] = {}
        self._crowded = _MANY

    def allowance(self, identity: Identity) -> Allowance:
        """A browser has no key, and only a user's limits."""
        names = {"key": identity.key_id, "user": identity.user_id}
        return Allowance(
            [
                Limit(unit, whose, self._bucket(unit, whose, name, rate))
                for (unit, whose), rate in self._rates.items()
                if rate and (name := names[whose]) is not None
            ],
            self._clock,
        )

    def _bucket(self, unit: str, whose: str, name: str, rate: int) -> Bucket:
        at = self._clock()
        if len(self._buckets) > self._crowded:
            self._buckets = {key: each for key, each in self._buckets.items() if each.level(at) < each.per_minute}
            self._crowded = max(_MANY, 2 * len(self._buckets))
        return self._buckets.setdefault((unit, whose, name), Bucket(rate, at))
