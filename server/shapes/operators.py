"""What operators and machines see: policies with their lines, training runs, prompts, state and health."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from feedback.schema import PolicyKind, PolicyState, RunState
from server.shapes import Shape, shown

_AT = "2026-11-27T12:00:00Z"
_POLICY = {
    "object": "policy",
    "version": "v1-0a1b2c3d",
    "number": 1,
    "kind": "adapter",
    "state": "accepted",
    "digest": "0a1b2c3d" * 8,
    "base_version": "v0-4e5f6a7b",
    "parent_version": "v0-4e5f6a7b",
    "run_id": "run-01k9s6m1x7",
    "reward_model_id": "rm-01k9s6m1x8",
    "report": {"win_rate": 0.61},
    "refusals": [],
    "created_at": _AT,
}


class Policy(Shape):
    object: Literal["policy"]
    version: str
    number: int
    kind: PolicyKind
    state: PolicyState
    digest: str
    base_version: str | None
    parent_version: str | None
    run_id: str | None
    reward_model_id: str | None
    report: dict[str, Any]
    """The gate's evidence."""
    refusals: list[str]
    """Why the gate said no."""
    created_at: datetime


class WantedPolicies(Shape):
    stable: str | None
    candidate: str | None
    share: float
    shadow: str | None
    """A candidate that nobody meets, which answers some prompts in the background."""
    base: str | None
    matchup: list[str | None] | None
    serving: str | None
    holds: list[str]
    """What this replica has loaded and proved."""
    folded: str | None
    """The adapter that is part of the base's weights here; it then is all that is held."""
    problems: dict[str, str]


class Policies(Shape):
    model_config = shown(
        {
            "object": "list",
            "data": [_POLICY],
            "wanted": {
                "stable": "v0-4e5f6a7b",
                "candidate": "v1-0a1b2c3d",
                "share": 0.05,
                "shadow": None,
                "base": "v0-4e5f6a7b",
                "matchup": None,
                "serving": "v0-4e5f6a7b",
                "holds": ["v0-4e5f6a7b", "v1-0a1b2c3d"],
                "folded": None,
                "problems": {},
            },
            "steps": [0.05, 0.25, 0.5, 1.0],
        }
    )
    object: Literal["list"]
    data: list[Policy]
    wanted: WantedPolicies
    steps: list[float]
    """Shares of users that a candidate takes, one after another."""


class SampleCount(Shape):
    kind: str
    split: str
    samples: int


class PolicyLineage(Shape):
    ancestors: list[str]
    """Parent first, the base last."""
    children: list[str]
    run_id: str | None
    reward_model_id: str | None
    samples: list[SampleCount]
    vote_ids: list[int]
    voters: int
    replies: dict[str, int]
    """How many replies in each state."""


class PolicyWithLineage(Policy):
    model_config = shown(
        {
            **_POLICY,
            "lineage": {
                "ancestors": ["v0-4e5f6a7b"],
                "children": [],
                "run_id": "run-01k9s6m1x7",
                "reward_model_id": "rm-01k9s6m1x8",
                "samples": [{"kind": "pair", "split": "train", "samples": 400}],
                "vote_ids": [1, 2, 3],
                "voters": 3,
                "replies": {"complete": 12},
            },
        }
    )
    lineage: PolicyLineage


_RUN = {
    "id": "run-01k9s6m1x7",
    "state": "succeeded",
    "stage": "done",
    "progress": 1.0,
    "message": "published v1-0a1b2c3d",
    "last_vote_id": 420,
    "votes": 400,
    "policy_version": "v1-0a1b2c3d",
    "report_path": "runs/run-01k9s6m1x7/report.html",
    "error": None,
    "started_at": _AT,
    "updated_at": _AT,
    "finished_at": _AT,
}


class RunHead(Shape):
    id: str
    state: RunState
    stage: str
    progress: float
    message: str
    last_vote_id: int
    votes: int
    policy_version: str | None
    report_path: str | None
    error: str | None
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class Runs(Shape):
    model_config = shown({"object": "list", "data": [_RUN]})
    object: Literal["list"]
    data: list[RunHead]


class Run(RunHead):
    model_config = shown(
        {
            "object": "training.run",
            **_RUN,
            "config": {},
            "metrics": {"ppo": [{"reward": 0.41, "kl_nats": 3.2}]},
            "report_url": "/v1/training/runs/run-01k9s6m1x7/report?ticket=key-01k9s6.1795000000.9f9f",
        }
    )
    object: Literal["training.run"]
    config: dict[str, Any]
    metrics: dict[str, Any]
    """What was measured so far; `ppo` has a row for each iteration."""
    report_url: str | None
    """Opens the report in a browser, for ten minutes and without a key."""


class RunRequested(Shape):
    model_config = shown({"object": "training.request", "requested": True})
    object: Literal["training.request"]
    requested: Literal[True]


class ServingPolicy(Shape):
    version: str
    number: int


class VoteCounts(Shape):
    total: int
    mine: int


class TrainerState(Shape):
    run_id: str
    state: RunState
    stage: str
    progress: float
    message: str
    updated_at: datetime


class Status(Shape):
    model_config = shown(
        {
            "policy": {"version": "v1-0a1b2c3d", "number": 1},
            "votes": {"total": 420, "mine": 12},
            "trainer": None,
            "ready": True,
        }
    )
    policy: ServingPolicy
    votes: VoteCounts
    trainer: TrainerState | None
    """The newest run, where there is one."""
    ready: bool


class Live(Shape):
    model_config = shown({"live": True})
    live: Literal[True]


class Ready(Shape):
    model_config = shown({"ready": True, "draining": False, "serving": "v1-0a1b2c3d"})
    ready: bool
    draining: bool
    serving: str | None


_PROMPT = {
    "object": "prompt",
    "id": "shop@3",
    "name": "shop",
    "number": 3,
    "text": "You work in a shop. Answer in one sentence.",
    "actor": "operator",
    "created_at": _AT,
}
_USE = {
    "object": "prompt.use",
    "key_id": None,
    "arms": [{"version": "shop@2", "weight": 1.0}, {"version": "shop@3", "weight": 1.0}],
    "actor": "operator",
    "created_at": _AT,
}


class Prompt(Shape):
    model_config = shown(_PROMPT)
    object: Literal["prompt"]
    id: str
    """`name@number`, as replies name it."""
    name: str
    number: int
    text: str
    actor: str
    created_at: datetime


class NewestPrompt(Prompt):
    model_config = shown(_PROMPT | {"new": True})
    new: bool
    """False where the newest version of the name has this very text already."""


class PromptArm(Shape):
    version: str
    weight: float


class PromptsInUse(Shape):
    model_config = shown(_USE)
    object: Literal["prompt.use"]
    key_id: str | None
    """Whose users; null: all others."""
    arms: list[PromptArm] | None
    """Empty: no prompt. null, for a key: what all others get."""
    actor: str
    created_at: datetime


class AllPromptsInUse(Shape):
    model_config = shown({"object": "list", "data": [_USE]})
    object: Literal["list"]
    data: list[PromptsInUse]


class Prompts(Shape):
    model_config = shown({"object": "list", "data": [_PROMPT], "uses": [_USE]})
    object: Literal["list"]
    data: list[Prompt]
    uses: list[PromptsInUse]
