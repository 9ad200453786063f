"""What must not get much worse, whatever people think of the replies: waiting, length either way, refusals. Pure.

Each is a mean over users of their own mean, candidate less stable, within steps, with bounds that hold at every look
(`deploy.sequential.difference`). Times and lengths are compared as logarithms, so a bound is one on how many times as
long. Unlike for votes there is a limit that must be passed: two policies never take exactly as long, and given enough
replies any difference is shown. With a limit, a candidate that keeps to it is rolled back with at most the guardrail's
part of alpha, and one that is as good as the stable policy practically never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy import sequential
from deploy.observed import Served
from deploy.sequential import Interval
from deploy.settings import RolloutSettings

FIRST_TOKEN_SECONDS = (0.005, 60.0)
PER_TOKEN_SECONDS = (0.001, 10.0)
"""Times are taken as these at least and at most: nobody feels less, and one that hangs is not a thousand others."""
MOST_TOKENS = 10_000

BETWEEN = {
    "first_token": (math.log(FIRST_TOKEN_SECONDS[0]), math.log(FIRST_TOKEN_SECONDS[1])),
    "per_token": (math.log(PER_TOKEN_SECONDS[0]), math.log(PER_TOKEN_SECONDS[1])),
    "length": (0.0, math.log1p(MOST_TOKENS)),
    "refusals": (0.0, 1.0),
}
"""What each score lies between."""

RATIO_SCALE, REFUSALS_SCALE = 0.3, 0.05
"""The effects beyond a limit that the bounds are tightest for: a third more, and five replies in a hundred."""


@dataclass(frozen=True)
class Guardrail:
    """`ratio`: all numbers are the candidate's over the stable policy's; else its less the stable policy's."""

    name: str
    ratio: bool
    lowest: float | None  # None: it may be as small as it likes
    highest: float
    users: int = 0  # in the smaller arm
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    raised: bool = False

    @property
    def what(self) -> str:
        return {
            "first_token": "time to first token",
            "per_token": "time per token",
            "length": "length of replies",
            "refusals": "share of refusals",
        }[self.name]


def guardrails(served: Sequence[Served], plan: RolloutSettings, parts: dict[str, float]) -> list[Guardrail]:
    """`parts`: of the plan's alpha, by name."""
    alpha = {name: plan.alpha * part for name, part in parts.items()}
    first_token, per_token, length, refusals = (
        _difference(served, name, alpha[name] / (2 if name == "length" else 1)) for name in BETWEEN
    )
    return [
        _judged("first_token", first_token, None, plan.first_token_ratio),
        _judged("per_token", per_token, None, plan.per_token_ratio),
        _judged("length", length, 1 / plan.length_ratio, plan.length_ratio),
        _judged("refusals", refusals, None, plan.refusals_margin, ratio=False),
    ]


def said_of(guardrail: Guardrail) -> str:
    assert guardrail.estimate is not None
    assert guardrail.lower is not None
    assert guardrail.upper is not None
    if not guardrail.ratio:
        return (
            f"{guardrail.what} is {guardrail.estimate:+.1%} on the stable policy's, by {guardrail.lower:.1%} at least, "
            f"where {guardrail.highest:.1%} is allowed"
        )
    if guardrail.lowest is not None and guardrail.upper < guardrail.lowest:
        bound, limit = f"{guardrail.upper:.2f} at most", guardrail.lowest
    else:
        bound, limit = f"{guardrail.lower:.2f} at least", guardrail.highest
    return (
        f"{guardrail.what} is {guardrail.estimate:.2f} times the stable policy's, {bound}, where {limit:.2f} is allowed"
    )


def _judged(
    name: str, interval: Interval | None, lowest: float | None, highest: float, *, ratio: bool = True
) -> Guardrail:
    if interval is None:
        return Guardrail(name, ratio, lowest, highest)
    estimate, lower, upper = (
        math.exp(value) if ratio else value for value in (interval.estimate, interval.lower, interval.upper)
    )
    raised = lower > highest or (lowest is not None and upper < lowest)
    return Guardrail(name, ratio, lowest, highest, interval.users, estimate, lower, upper, raised)


def _difference(served: Sequence[Served], name: str, alpha: float) -> Interval | None:
    field = "refused" if name == "refusals" else name
    low, high = BETWEEN[name]
    rows = [(row, score) for row in served if (score := getattr(row.manner, field)) is not None]
    numbers = {user: at for at, user in enumerate(dict.fromkeys(row.user for row, _ in rows))}
    return sequential.difference(
        np.array([numbers[row.user] for row, _ in rows], dtype=np.int64),
        np.array([row.share for row, _ in rows], dtype=np.float64),
        np.array([row.candidate for row, _ in rows], dtype=np.bool_),
        np.array([score for _, score in rows], dtype=np.float64).clip(low, high),
        low=low,
        high=high,
        alpha=alpha,
        scale=REFUSALS_SCALE if name == "refusals" else RATIO_SCALE,
    )
