"""Which policy answers a user. Pure: the same user, salt and share always give the same arm.

Users are cut by a salted hash into the candidate's share and the rest. A larger share keeps everyone who was in the
smaller one. The probability of the arm goes into the log with every reply.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deploy.rollout import Wanted

STABLE, CANARY = "stable", "canary"


@dataclass(frozen=True, slots=True)
class Assignment:
    version: str
    arm: str
    propensity: float


def position(user_id: str, salt: str) -> float:
    """Where a user stands between 0 and 1: uniform over users, the same for ever under one salt."""
    digest = hashlib.sha256(f"{salt}\0{user_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def track_of(version: str, wanted: Wanted) -> str:
    """Among whose numbers a policy's replies count: the candidate's, or those of what serves everybody else."""
    return CANARY if version == wanted.candidate else STABLE


def assign(user_id: str, wanted: Wanted, held: Collection[str], fallback: str) -> Assignment:
    """`held` are the policies that are proved here; `fallback` is the one that served before.

    While the candidate is not held, nobody meets it: users are never split by what happened to load.
    """
    if wanted.candidate is not None and wanted.candidate in held and wanted.share > 0:
        if wanted.share >= 1.0:
            return Assignment(wanted.candidate, CANARY, 1.0)
        if wanted.stable in held:
            if position(user_id, wanted.salt) < wanted.share:
                return Assignment(wanted.candidate, CANARY, wanted.share)
            return Assignment(wanted.stable, STABLE, 1.0 - wanted.share)
    return Assignment(wanted.stable if wanted.stable in held else fallback, STABLE, 1.0)


def offers_two(user_id: str, place: str, rate: float) -> bool:
    """Whether a message at `place` of a conversation is answered with two replies, unasked."""
    return position(user_id, f"two replies\0{place}") < rate


@dataclass(frozen=True, slots=True)
class Pairing:
    left: str
    right: str
    propensity: float  # of these policies on these sides


def pair(
    user_id: str,
    wanted: Wanted,
    held: Collection[str],
    fallback: str,
    draw: random.Random,
    *,
    odds: Mapping[tuple[str, str], float] | None = None,
) -> Pairing:
    """The two policies of a comparison: the matchup; else in a canary both arms; else what serves, twice.

    `odds`: of pairs of held policies, in an automatic matchup. Where there are any they come first.
    """
    if odds:
        [(first, second)] = draw.choices(list(odds), list(odds.values()))
        left, right = (first, second) if draw.random() < 0.5 else (second, first)
        return Pairing(left, right, odds[first, second] / 2)
    candidates = [wanted.matchup] if wanted.matchup else []
    if wanted.candidate is not None:
        candidates.append((wanted.stable, wanted.candidate))
    for first, second in candidates:
        if first in held and second in held:
            if first == second:
                return Pairing(first, second, 1.0)
            left, right = (first, second) if draw.random() < 0.5 else (second, first)
            return Pairing(left, right, 0.5)
    version = assign(user_id, wanted, held, fallback).version
    return Pairing(version, version, 1.0)
