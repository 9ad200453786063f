"""What the evidence says about a rollout: go back, go on, or wait. Pure: counts and a plan in, a decision out.

Harm needs no margin: a candidate whose upper bound is below the stable policy is worse, and goes back. Going on needs
one, since no finite number of votes shows that nothing is lost. It is a bound on the loss of all users together, were
the next share taken: at 5 % little has to be known of a candidate to let 25 % meet it, and for everybody a lot.

A sample ratio mismatch goes back as well. It does not say that the candidate is bad; it says that the arms are not
comparable, so that nothing here would notice if it were. Nobody should meet a policy that is not watched, and to start
the rollout again, when the cause is found, costs one command.

What is not decided here: whether a person or the controller takes the step (`deploy.controller`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from deploy import guardrails, sequential
from deploy.guardrails import Guardrail
from deploy.observed import SHADOW, Evidence, Served
from deploy.sequential import Interval
from deploy.settings import RolloutSettings

MISMATCHED = "the arms cannot be compared"
"""With these words begins what is said of users who are not divided as the share says."""

ALPHA_PARTS = {
    "win_rate": 0.25,
    "net_votes": 0.25,
    "errors": 0.15,
    "harmful_flags": 0.15,
    "sample_ratio": 0.06,
    "first_token": 0.02,
    "per_token": 0.02,
    "length": 0.06,  # both ways
    "refusals": 0.04,
}
"""Of the plan's alpha; each guardrail spends its own, and together they spend all of it."""

WIN_RATE_SCALE, NET_VOTES_SCALE = 0.1, 0.2
"""The effects that the intervals are tightest for: ten people in a hundred change their mind."""


class Verdict(StrEnum):
    ROLL_BACK = "roll_back"
    ADVANCE = "advance"
    PROMOTE = "promote"
    HOLD = "hold"


class Standing(StrEnum):
    HARM = "harm"
    NO_WORSE = "no_worse"
    UNDECIDED = "undecided"
    TOO_FEW_USERS = "too_few_users"


@dataclass(frozen=True)
class Measure:
    name: str
    neutral: float  # where the two policies are alike
    needed: float  # the lower bound must be above this for the next share
    users: int = 0  # in the smaller arm
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    standing: Standing = Standing.TOO_FEW_USERS


@dataclass(frozen=True)
class Alarm:
    """A count of users, in the step whose count is most surprising."""

    name: str
    share: float = 0.0  # that the candidate should have of them
    candidate: int = 0
    users: int = 0
    p_value: float = 1.0  # valid at every look; the steps' own parts of alpha are in it
    alpha: float = 0.0
    raised: bool = False


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    reason: str
    share: float  # of users for the candidate, when the decision has been carried out
    measures: list[Measure] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    guardrails: list[Guardrail] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(evidence: Evidence, plan: RolloutSettings) -> Decision:
    following = next((step for step in plan.steps if step > evidence.share), None)
    measures = _measures(evidence, plan, following or 1.0)
    alarms = _alarms(evidence, plan)
    limits = guardrails.guardrails(evidence.served, plan, ALPHA_PARTS)

    def decision(verdict: Verdict, reason: str, share: float) -> Decision:
        return Decision(verdict, reason, share, measures, alarms, limits)

    bad = [_said_of(alarm) for alarm in alarms if alarm.raised]
    bad += [guardrails.said_of(limit) for limit in limits if limit.raised]
    bad += [
        f"{_words(m.name)} {m.estimate:.3f} is worse than {m.neutral:g}: its upper bound is {m.upper:.3f}"
        for m in measures
        if m.standing is Standing.HARM
    ]
    if bad:
        return decision(Verdict.ROLL_BACK, "; ".join(bad), 0.0)
    missing = _missing(evidence, plan, measures, limits)
    if missing:
        return decision(Verdict.HOLD, "; ".join(missing), evidence.share)
    if evidence.in_shadow:
        return decision(Verdict.ADVANCE, "nothing that was measured in shadow is beyond its limit", following or 1.0)
    known = [m for m in measures if m.lower is not None]
    shown = "; ".join(f"{_words(m.name)} {m.estimate:.3f}, at least {m.lower:.3f}" for m in known)
    if following is None:
        return decision(Verdict.PROMOTE, f"no worse than {evidence.stable}: {shown}", evidence.share)
    return decision(Verdict.ADVANCE, f"no worse than {evidence.stable}: {shown}", following)


def _missing(
    evidence: Evidence, plan: RolloutSettings, measures: Sequence[Measure], limits: Sequence[Guardrail]
) -> list[str]:
    """Why not go on; empty: nothing stands against it."""
    missing = [evidence.held] if evidence.held else []
    if evidence.minutes < plan.min_minutes:
        missing.append(f"{evidence.minutes:.0f} of {plan.min_minutes:g} minutes")
    if evidence.in_shadow:
        return missing + _missing_in_shadow(evidence, plan, limits)
    if evidence.step_votes < plan.min_votes:
        missing.append(f"{evidence.step_votes} of {plan.min_votes} votes on this step")
    # At 100 % nobody is left to compare with: what let the candidate come there stands, unless harm is shown after all.
    missing += [
        f"{_words(m.name)} {m.estimate:.3f} is at least {m.lower:.3f}, and must be above {m.needed:.3f}"
        for m in measures
        if m.standing is Standing.UNDECIDED and evidence.share < 1.0
    ]
    if all(m.standing is Standing.TOO_FEW_USERS for m in measures):
        missing.append(f"nothing to compare: fewer than {sequential.MIN_USERS} users in an arm")
    return missing


def _missing_in_shadow(evidence: Evidence, plan: RolloutSettings, limits: Sequence[Guardrail]) -> list[str]:
    """Nobody votes there: replies stand for votes, and the guardrails for what users say."""
    given = [row.manner.replies + row.failed for row in evidence.served if row.candidate and row.share == SHADOW]
    missing = []
    if sum(given) < plan.shadow_replies:
        missing.append(f"{sum(given)} of {plan.shadow_replies} replies in shadow")
    if all(limit.estimate is None for limit in limits):
        missing.append(f"nothing to compare: {len(given)} of {sequential.MIN_USERS} users were answered in shadow too")
    return missing


def _measures(evidence: Evidence, plan: RolloutSettings, share: float) -> list[Measure]:
    """`share`: that the candidate would have next; what all users together may lose is the plan's margin."""
    win_rate = _measure("win_rate", _win_rate(evidence, plan), 0.5, plan.win_rate_margin / share)
    net_votes = _measure("net_votes", _net_votes(evidence, plan), 0.0, plan.net_votes_margin / share)
    return [win_rate, net_votes]


def _measure(name: str, interval: Interval | None, neutral: float, margin: float) -> Measure:
    needed = neutral - margin
    if interval is None:
        return Measure(name, neutral, needed)
    if interval.upper < neutral:
        standing = Standing.HARM
    else:
        standing = Standing.NO_WORSE if interval.lower > needed else Standing.UNDECIDED
    bounds = interval.users, interval.estimate, interval.lower, interval.upper
    return Measure(name, neutral, needed, *bounds, standing)


def _win_rate(evidence: Evidence, plan: RolloutSettings) -> Interval | None:
    scores = [(each.won + 0.5 * each.level) / (each.won + each.lost + each.level) for each in evidence.compared]
    alpha = plan.alpha * ALPHA_PARTS["win_rate"]
    return sequential.mean(np.array(scores), low=0.0, high=1.0, alpha=alpha, scale=WIN_RATE_SCALE)


def _net_votes(evidence: Evidence, plan: RolloutSettings) -> Interval | None:
    rows = [row for row in evidence.served if row.replies]
    numbers = {user: at for at, user in enumerate(dict.fromkeys(row.user for row in rows))}
    return sequential.difference(
        np.array([numbers[row.user] for row in rows], dtype=np.int64),
        np.array([row.share for row in rows], dtype=np.float64),
        np.array([row.candidate for row in rows], dtype=np.bool_),
        np.array([(row.up - row.down) / row.replies for row in rows], dtype=np.float64),
        low=-1.0,
        high=1.0,
        alpha=plan.alpha * ALPHA_PARTS["net_votes"],
        scale=NET_VOTES_SCALE,
    )


def _alarms(evidence: Evidence, plan: RolloutSettings) -> list[Alarm]:
    shares = sorted({row.share for row in evidence.served if row.share < 1.0})

    def alarm(name: str, test: Callable[..., Any], counts: Callable[[Served], bool]) -> Alarm:
        return _worst_step(name, test, shares, [row for row in evidence.served if counts(row)], plan)

    return [
        alarm("errors", sequential.excess, lambda row: row.failed > 0),
        alarm("harmful_flags", sequential.excess, lambda row: row.harmful > 0),
        alarm("sample_ratio", sequential.mismatch, lambda row: row.share != SHADOW),
    ]


def _worst_step(
    name: str, test: Callable[..., Any], shares: Sequence[float], rows: Sequence[Served], plan: RolloutSettings
) -> Alarm:
    """Each step is a test of its own, for a user's arm at the next one is no new draw.

    The k-th step spends 1 / (k (k + 1)) of the guardrail's alpha: all of them together never more than all of it.
    """
    alpha = plan.alpha * ALPHA_PARTS[name]
    alarms = []
    for k, share in enumerate(shares, 1):
        users = [row.candidate for row in rows if row.share == share]
        expected = 0.5 if share == SHADOW else share  # there each user is in both arms
        log_evidence = float(test(sum(users), len(users), expected)) - math.log(k * (k + 1))
        p_value = math.exp(-max(log_evidence, 0.0))
        alarms.append(Alarm(name, expected, sum(users), len(users), p_value, alpha, raised=p_value <= alpha))
    # Of equals the newest step.
    return min(reversed(alarms), key=lambda each: each.p_value, default=Alarm(name, alpha=alpha))


def _said_of(alarm: Alarm) -> str:
    if alarm.name == "sample_ratio":
        return (
            f"{MISMATCHED}: {alarm.candidate} of {alarm.users} users met the candidate at a share of "
            f"{alarm.share:.0%} (p {alarm.p_value:.1g})"
        )
    what = {"errors": "met an error", "harmful_flags": "flagged a reply as harmful"}[alarm.name]
    return (
        f"of {alarm.users} users who {what}, {alarm.candidate} were the candidate's, at a share of {alarm.share:.0%} "
        f"(p {alarm.p_value:.1g})"
    )


def _words(name: str) -> str:
    return {"win_rate": "win rate", "net_votes": "net votes per reply"}[name]
