"""What operators see of a rollout: its state, what the evidence says, who did what, and what comparisons draw from."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from deploy import replicas
from deploy.decision import Standing, Verdict
from feedback.schema import RolloutState
from server.shapes import Shape, shown

_AT = "2026-11-27T12:00:00Z"
_ROLLOUT = {
    "object": "rollout",
    "id": 3,
    "state": "canary",
    "candidate_version": "v1-0a1b2c3d",
    "stable_version": "v0-4e5f6a7b",
    "share": 0.05,
    "started_by": "operator",
    "reason": "",
    "created_at": _AT,
    "updated_at": _AT,
}


class Rollout(Shape):
    model_config = shown(_ROLLOUT)
    object: Literal["rollout"]
    id: int
    state: RolloutState
    candidate_version: str
    stable_version: str
    share: float
    started_by: str
    reason: str
    created_at: datetime
    updated_at: datetime


EXAMPLE_PLAN = {
    "object": "rollout.plan",
    "action": "advance",
    "candidate": "v1-0a1b2c3d",
    "stable": "v0-4e5f6a7b",
    "from_share": 0.05,
    "to_share": 0.25,
    "to_state": "canary",
    "swaps_base": False,
    "sentence": "v1-0a1b2c3d goes from 5% to 25% of users, beside v0-4e5f6a7b.",
}


class RolloutPlan(Shape):
    """What would be done: the answer to a dry run."""

    model_config = shown(EXAMPLE_PLAN)
    object: Literal["rollout.plan"]
    action: str
    candidate: str
    stable: str
    from_share: float
    to_share: float
    to_state: RolloutState
    swaps_base: bool
    """The engine's base weights are swapped, which pauses streams briefly."""
    sentence: str


class RolloutEvent(Shape):
    id: int
    action: str
    from_state: RolloutState | None
    to_state: RolloutState
    share: float
    actor: str
    reason: str
    created_at: datetime
    hash: str
    """Over the hash of the event before it and this one's content."""


class LoggedEvent(RolloutEvent):
    rollout_id: int
    candidate_version: str


class Chain(Shape):
    events: int
    head: str
    """The newest hash: kept elsewhere, it shows whether the newest events were removed."""
    broken: int | None
    """The first event that is not what was written, or not where it was written."""


class RolloutEvents(Shape):
    model_config = shown(
        {
            "object": "list",
            "data": [
                {
                    "id": 5,
                    "rollout_id": 3,
                    "candidate_version": "v1-0a1b2c3d",
                    "action": "start",
                    "from_state": None,
                    "to_state": "canary",
                    "share": 0.05,
                    "actor": "operator",
                    "reason": "",
                    "created_at": _AT,
                    "hash": "9f" * 32,
                }
            ],
            "chain": {"events": 5, "head": "9f" * 32, "broken": None},
        }
    )
    object: Literal["list"]
    data: list[LoggedEvent]
    chain: Chain


class Replica(Shape):
    id: str
    address: str
    ready: bool
    base_version: str | None
    holds: list[str]
    folded: str | None
    """The adapter that is part of the base's weights there; it then is all that is held."""
    problems: dict[str, str]
    started_at: datetime
    heartbeat_at: datetime
    heard_of: bool
    """Within the last half minute."""
    standing: replicas.Standing
    """Whether it holds all that is wanted."""


class Measure(Shape):
    name: str
    neutral: float
    needed: float
    users: int
    estimate: float | None
    lower: float | None
    upper: float | None
    standing: Standing


class Limit(Shape):
    """A guardrail: `ratio` says whether its numbers are the candidate's over the stable policy's, or less them."""

    name: str
    ratio: bool
    lowest: float | None
    highest: float
    users: int
    estimate: float | None
    lower: float | None
    upper: float | None
    raised: bool


class Alarm(Shape):
    name: str
    share: float
    candidate: int
    users: int
    p_value: float
    alpha: float
    raised: bool


class Decision(Shape):
    verdict: Verdict
    reason: str
    share: float
    measures: list[Measure]
    alarms: list[Alarm]
    guardrails: list[Limit]


class Served(Shape):
    share: float
    arm: Literal["stable", "canary", "shadow"]
    users: int
    replies: int
    failed: int
    up: int
    down: int


class Evidence(Shape):
    minutes: float
    """On this step."""
    step_votes: int
    comparing_users: int
    served: list[Served]


class CurrentRollout(Rollout):
    model_config = shown(
        {
            **_ROLLOUT,
            "held": False,
            "step_began": _AT,
            "decision": {
                "verdict": "hold",
                "reason": "3 of 50 votes",
                "share": 0.05,
                "measures": [],
                "alarms": [],
                "guardrails": [],
            },
            "evidence": {
                "minutes": 12.5,
                "step_votes": 3,
                "comparing_users": 4,
                "served": [
                    {"share": 0.05, "arm": "canary", "users": 5, "replies": 20, "failed": 0, "up": 2, "down": 1}
                ],
            },
            "plan": {"automatic": False, "steps": [0.05, 0.25, 0.5, 1.0], "min_minutes": 60.0, "min_votes": 100},
            "events": [
                {
                    "id": 5,
                    "action": "start",
                    "from_state": None,
                    "to_state": "canary",
                    "share": 0.05,
                    "actor": "operator",
                    "reason": "",
                    "created_at": _AT,
                    "hash": "9f" * 32,
                }
            ],
            "replicas": [],
        }
    )
    held: bool
    step_began: datetime
    """When the candidate got the share that it has."""
    decision: Decision | None
    """What the evidence says now; null where there is nothing to decide."""
    evidence: Evidence | None
    plan: dict[str, Any]
    """KUDOS_ROLLOUT_..., by name."""
    events: list[RolloutEvent]
    replicas: list[Replica]


class Matchup(Shape):
    model_config = shown(
        {
            "object": "matchup",
            "first_version": "v1-0a1b2c3d",
            "second_version": "v0-4e5f6a7b",
            "automatic": False,
            "versions": None,
            "ready": True,
        }
    )
    object: Literal["matchup"]
    first_version: str | None
    second_version: str | None
    automatic: bool
    """Pairs are drawn by what is known of them."""
    versions: list[str] | None
    """From these, where it is automatic; null: from all that are accepted and can be held."""
    ready: bool
    """Whether this replica draws from it already."""
