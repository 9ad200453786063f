"""Who is preferred: every choice that counts between two policies (or two prompts), and the strengths behind them.

Raw strengths say what people chose. Controlled ones say what they would choose were the two replies alike in length and
form; where the two differ, an entry is liked for its looks. The fit is `deploy.bradley_terry`'s.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import and_, select
from sqlmodel import Session

from deploy.bradley_terry import Choices, Fit, fit
from feedback.schema import Comparison, Reply, TargetKind
from feedback.statements import table
from feedback.verdicts import effective_vote

NEWEST = 50_000
"""Choices that are read: more would change little, and take longer than somebody waits."""

_LIST = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)、])\s")
_EMPHASIS = re.compile(r"\*\*|__|`|(?m:^#+\s)")
_EXCLAMATION = re.compile(r"[!！]")

LOOKS: dict[str, Callable[[str], float]] = {
    "length": lambda text: math.log1p(len(text)),
    "lists": lambda text: math.log1p(len(_LIST.findall(text))),
    "emphasis": lambda text: math.log1p(len(_EMPHASIS.findall(text))),
    "exclamations": lambda text: math.log1p(len(_EXCLAMATION.findall(text))),
}
"""What a reply looks like, in logarithms: twice as long is as much more for a short reply as for a long one."""


class By(StrEnum):
    POLICY = "policy"
    PROMPT = "prompt"


_COLUMNS = {By.POLICY: "policy_version", By.PROMPT: "prompt_version"}
UNNAMED = "none"  # a reply that was written without a system prompt of the server's


@dataclass(frozen=True)
class Choice:
    user: str
    left: str
    right: str
    choice: str  # left, right, tie, both_bad
    looks: tuple[float, ...]  # left less right, in the order of LOOKS

    @property
    def winner(self) -> str | None:
        return {"left": self.left, "right": self.right}.get(self.choice)


@dataclass(frozen=True)
class Ranked:
    """The entries in the order of the fit, and the fit."""

    names: list[str]
    fit: Fit
    looks: list[str]  # those whose effect is part of it


def choices_of(session: Session, by: By = By.POLICY) -> list[Choice]:
    """The newest choices between two different ones, not in quarantine, each reply being one policy's."""
    column = _COLUMNS[by]
    left, right = table(Reply).alias("left_reply"), table(Reply).alias("right_reply")
    comparison, vote = table(Comparison), effective_vote
    rows = session.execute(
        select(vote.c.user_id, left.c[column], right.c[column], vote.c.choice, left.c.text, right.c.text)
        .select_from(vote)
        .join(comparison, and_(comparison.c.id == vote.c.target_id, comparison.c.user_id == vote.c.user_id))
        .join(left, left.c.id == comparison.c.left_reply_id)
        .join(right, right.c.id == comparison.c.right_reply_id)
        .where(
            vote.c.target_kind == TargetKind.COMPARISON.value,
            vote.c.choice.is_not(None),
            ~vote.c.quarantined,
            left.c[column].is_distinct_from(right.c[column]),
            left.c.mixed_versions.is_(None),
            right.c.mixed_versions.is_(None),
        )
        .order_by(vote.c.id.desc())
        .limit(NEWEST),
        execution_options={"yield_per": 1_000},
    )
    return [
        Choice(
            user,
            left_name or UNNAMED,
            right_name or UNNAMED,
            choice,
            tuple(look(left_text) - look(right_text) for look in LOOKS.values()),
        )
        for user, left_name, right_name, choice, left_text, right_text in rows
    ]


def ranked(choices: Sequence[Choice], *, controlled: bool = False, also: Iterable[str] = ()) -> Ranked:
    """`also`: names that are part of it though nobody has chosen between them and another."""
    names = sorted({name for each in choices for name in (each.left, each.right)} | set(also))
    at = {name: number for number, name in enumerate(names)}
    users = {user: number for number, user in enumerate(dict.fromkeys(each.user for each in choices))}
    looks = np.array([each.looks for each in choices]).reshape(len(choices), len(LOOKS))
    size = np.sqrt(np.square(looks).mean(0)) if len(choices) else np.zeros(len(LOOKS))
    kept = np.flatnonzero(size > 0) if controlled else np.zeros(0, dtype=np.int64)
    found = fit(
        Choices(
            entries=len(names),
            users=np.array([users[each.user] for each in choices], dtype=np.int64),
            left=np.array([at[each.left] for each in choices], dtype=np.int64),
            right=np.array([at[each.right] for each in choices], dtype=np.int64),
            outcome=np.array([{"left": 1, "right": -1}.get(each.choice, 0) for each in choices], dtype=np.int64),
            looks=looks[:, kept] / size[kept],
        )
    )
    return Ranked(names, found, [list(LOOKS)[k] for k in kept])


def board(choices: Sequence[Choice]) -> dict[str, Any]:
    """`data`, `pairs` and `effects` of `GET /v1/leaderboard`, as JSON values."""
    if not choices:
        return {"choices": 0, "users": 0, "data": [], "pairs": [], "effects": None}
    raw, controlled = ranked(choices), ranked(choices, controlled=True)
    places = {"raw": _places(raw), "controlled": _places(controlled)}
    counts = _counts(choices)
    data = [
        {"name": name, **counts[name], **{kind: places[kind][at] for kind in places}}
        for at, name in enumerate(raw.names)
    ]
    return {
        "choices": len(choices),
        "users": len({each.user for each in choices}),
        "data": sorted(data, key=lambda row: (-row["raw"]["strength"], row["name"])),
        "pairs": _pairs(choices),
        "effects": {"raw": _effects(raw), "controlled": _effects(controlled)},
    }


def _places(found: Ranked) -> list[dict[str, Any]]:
    strengths = [found.fit.strength(at) for at in range(len(found.names))]

    def rate(strength: float | None) -> float | None:
        return None if strength is None else found.fit.win_rate(strength)

    return [
        {
            "rank": None
            if mine.upper is None
            else 1 + sum(each.lower is not None and each.lower > mine.upper for each in strengths),
            "strength": mine.estimate,
            "lower": mine.lower,
            "upper": mine.upper,
            "win_rate": rate(mine.estimate),
            "win_rate_lower": rate(mine.lower),
            "win_rate_upper": rate(mine.upper),
        }
        for mine in strengths
    ]


def _effects(found: Ranked) -> dict[str, Any]:
    named = {name: asdict(found.fit.effect(number)) for number, name in enumerate(["left", *found.looks])}
    return {**named, "tie": found.fit.tie}


def _counts(choices: Sequence[Choice]) -> dict[str, dict[str, int]]:
    names = {name for each in choices for name in (each.left, each.right)}
    counts = {name: dict.fromkeys(("choices", "users", "wins", "losses", "ties", "both_bad"), 0) for name in names}
    users: dict[str, set[str]] = {name: set() for name in names}
    for each in choices:
        for name in (each.left, each.right):
            counts[name]["choices"] += 1
            users[name].add(each.user)
            if each.winner is not None:
                counts[name]["wins" if each.winner == name else "losses"] += 1
            else:
                counts[name]["ties" if each.choice == "tie" else "both_bad"] += 1
    for name in names:
        counts[name]["users"] = len(users[name])
    return counts


def _pairs(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """One row for each two that were compared, most judged first; no model of strength in it."""
    grouped: dict[tuple[str, str], list[Choice]] = {}
    for each in choices:
        grouped.setdefault((min(each.left, each.right), max(each.left, each.right)), []).append(each)
    rows = []
    for (first, second), mine in grouped.items():
        won, said = Counter(each.winner for each in mine), Counter(each.choice for each in mine)
        rows.append(
            {
                "first": first,
                "second": second,
                "votes": len(mine),
                "users": len({each.user for each in mine}),
                "first_wins": won[first],
                "second_wins": won[second],
                "ties": said["tie"],
                "both_bad": said["both_bad"],
                "first_win_rate": (won[first] + 0.5 * won[None]) / len(mine),  # level: half a win for each
            }
        )
    return sorted(rows, key=lambda row: (-row["votes"], row["first"], row["second"]))
