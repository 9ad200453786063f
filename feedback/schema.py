"""Every table of kudos, in one place: the rows through which the folders meet.

The log (conversation, reply, comparison, vote, exposure) is append-mostly: a vote is never updated, a changed mind is a
new revision, and the view `effective_vote` says which revision counts. The loop (policy, rollout, replica,
training_run, reward_model, training_sample, lease) is what deploy, server and trainer tell one another.

Times are UTC, timezone-aware. Token ids are little-endian int32 and logprobs little-endian float32, packed into bytes:
see `feedback.packing`. This module holds no queries.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC datetime on every database; SQLite alone would forget the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime: use feedback.schema.now()")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


class ReplyState(StrEnum):
    STREAMING = "streaming"  # the engine is generating; after a crash it becomes INCOMPLETE
    COMPLETE = "complete"  # ended by itself or at its length limit
    STOPPED = "stopped"  # the user stopped it or went away, or the safety filter cut it; the text is what was shown
    FAILED = "failed"  # the engine failed it
    INCOMPLETE = "incomplete"  # the server died in the middle


class TargetKind(StrEnum):
    REPLY = "reply"
    COMPARISON = "comparison"


class Thumb(StrEnum):
    UP = "up"
    DOWN = "down"


class Choice(StrEnum):
    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"
    BOTH_BAD = "both_bad"


class PolicyKind(StrEnum):
    BASE = "base"  # the model that the deployment started from
    ADAPTER = "adapter"  # a LoRA on the base
    FULL = "full"  # a whole checkpoint


class PolicyState(StrEnum):
    CANDIDATE = "candidate"  # published; the gate has not spoken
    ACCEPTED = "accepted"  # the gate lets it meet users
    REFUSED = "refused"  # the gate refuses it; kept with its report, never served


class RolloutState(StrEnum):
    SHADOW = "shadow"  # the candidate answers some prompts in the background; nobody sees it
    CANARY = "canary"  # the candidate takes `share` of users
    PROMOTED = "promoted"  # the candidate is the stable policy
    ROLLED_BACK = "rolled_back"  # the candidate serves nobody


class RunState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # a policy was published (accepted or refused: see the policy)
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # the process died; it can be resumed
    ERASED = "erased"  # votes that it learned from were erased before it ended; it cannot be resumed


class User(SQLModel, table=True):
    __tablename__ = "user_account"

    id: str = Field(primary_key=True)
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    consent: bool | None = None  # None: the deployment's default holds
    erased_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # a tombstone: see feedback.tombstones


class ApiKey(SQLModel, table=True):
    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    sha256: str = Field(unique=True)  # of the secret; the secret itself is never stored
    label: str
    scopes: list[str] = Field(sa_column=Column(JSON, nullable=False))  # chat, feedback, operator, metrics, on_behalf
    user_id: str  # whom the key speaks for when no X-Kudos-User header is sent
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


_DELETED = text("deleted_at IS NOT NULL")


class Conversation(SQLModel, table=True):
    __tablename__ = "conversation"
    __table_args__ = (Index("ix_conversation_deleted", "id", sqlite_where=_DELETED, postgresql_where=_DELETED),)

    id: str = Field(primary_key=True)
    user_id: str = Field(index=True)
    title: str = ""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    deleted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


_STREAMING = text("state = 'streaming'")


SHADOW = "shadow"
"""Arm and source of a reply that a candidate gave in the background: shown to nobody, voted on by nobody."""


class Reply(SQLModel, table=True):
    __tablename__ = "reply"
    __table_args__ = (
        Index("ix_reply_user_created", "user_id", "created_at"),
        Index("ix_reply_streaming", "replica_id", sqlite_where=_STREAMING, postgresql_where=_STREAMING),
    )

    id: str = Field(primary_key=True)
    conversation_id: str = Field(index=True)
    user_id: str
    parent_id: str | None = None  # the reply before this one in the conversation
    regenerate_of: str | None = None
    comparison_id: str | None = Field(default=None, index=True)
    side: str | None = None  # left or right, in a comparison
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    first_token_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    state: str = ReplyState.STREAMING
    finish_reason: str | None = None
    messages: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))  # the prompt, as rendered
    prompt_digest: str = Field(index=True)  # SHA-256 of the messages; splits data by prompt
    prompt_token_ids: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    text: str = ""  # what the user saw
    token_ids: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # as sampled, never re-tokenised
    logprobs: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # of the sampled tokens
    sampling: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    template_digest: str | None = None
    policy_version: str = Field(index=True)
    mixed_versions: list[str] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True))
    )  # set: never trained on
    arm: str = "stable"  # stable, canary, shadow, left, right, imported
    propensity: float = 1.0  # the probability with which the arm was chosen
    source: str = "chat"  # chat, shadow (nobody saw it), or the name of an import
    replica_id: str | None = None  # the server that generates it
    safety_flag: str | None = None  # rules, classifier: what of the safety filter flagged it; None: nothing did
    safety: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True))
    )  # the filter's verdict, and which filter's; None: there was none
    prompt_version: str | None = None  # of the system prompt that the operator chose; None: the client's own, or none
    prompt_propensity: float | None = None  # the probability with which it was chosen
    refused: bool | None = None  # its text refuses to answer: see feedback.refusals; None: nobody looked


class Comparison(SQLModel, table=True):
    __tablename__ = "comparison"

    id: str = Field(primary_key=True)
    user_id: str = Field(index=True)
    conversation_id: str
    left_reply_id: str
    right_reply_id: str
    propensity: float = 1.0  # of this pair of policies on these sides
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    source: str = "chat"


class Vote(SQLModel, table=True):
    """One revision of one user's vote on one target. Rows are only ever added."""

    __tablename__ = "vote"
    __table_args__ = (
        UniqueConstraint("target_id", "user_id", "revision", name="uq_vote_revision"),
        UniqueConstraint("user_id", "idempotency_key", name="uq_vote_idempotency"),  # and all votes of a user
        {"sqlite_autoincrement": True},  # an id is never given twice, not even after an erasure
    )

    id: int | None = Field(default=None, primary_key=True)
    target_kind: str
    target_id: str
    user_id: str
    revision: int  # 1, 2, ... per user and target
    withdrawn: bool = False
    thumb: str | None = None
    rating: float | None = None  # 0..1
    reasons: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    comment: str | None = None
    correction: str | None = None
    harmful: bool = False
    choice: str | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None  # of target and ballot: tells a repeat from a change
    quarantined: bool = False
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


EFFECTIVE_VOTE_VIEW = """
CREATE VIEW effective_vote AS
SELECT v.* FROM vote v
WHERE NOT v.withdrawn AND NOT EXISTS (
    SELECT 1 FROM vote newer
    WHERE newer.target_id = v.target_id AND newer.user_id = v.user_id AND newer.revision > v.revision
)
"""


class Policy(SQLModel, table=True):
    __tablename__ = "policy"

    version: str = Field(primary_key=True)  # v<number>-<first 8 of digest>
    number: int = Field(unique=True)
    kind: str
    state: str = PolicyState.CANDIDATE
    path: str  # folder name below <home>/policies, or the model folder of a base
    digest: str  # SHA-256 of the manifest (of the weights, for a base)
    base_version: str | None = None  # what an adapter sits on
    parent_version: str | None = None  # what training started from
    run_id: str | None = None
    reward_model_id: str | None = None
    report: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # the gate's evidence
    refusals: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  # why the gate said no
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Rollout(SQLModel, table=True):
    __tablename__ = "rollout"

    id: int | None = Field(default=None, primary_key=True)
    state: str
    candidate_version: str
    stable_version: str  # what serves everyone else, and what a rollback returns to
    share: float  # of users, 0..1
    salt: str  # of the hash that assigns users
    started_by: str
    reason: str = ""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class RolloutEvent(SQLModel, table=True):
    """Append-only: every transition, who made it and why. Rows are chained: see `deploy.audit`."""

    __tablename__ = "rollout_event"

    id: int | None = Field(default=None, primary_key=True)
    rollout_id: int = Field(index=True)
    action: str  # shadow, start, advance, hold, resume, promote, rollback
    from_state: str | None = None
    to_state: str
    share: float
    actor: str
    reason: str = ""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    hash: str = ""  # SHA-256 over the hash of the event before it and this one's content


class Matchup(SQLModel, table=True):
    """Which policies comparisons draw from; the newest row counts. All empty: what serves, against itself."""

    __tablename__ = "matchup"

    id: int | None = Field(default=None, primary_key=True)
    first_version: str | None = None
    second_version: str | None = None
    automatic: bool = False  # pairs are drawn by what is known of their strengths, from `versions`
    versions: list[str] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True))
    )  # None: what replicas hold anyhow
    actor: str
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class PromptVersion(SQLModel, table=True):
    """One version of a named system prompt. Never changed, never deleted."""

    __tablename__ = "prompt_version"
    __table_args__ = (UniqueConstraint("name", "number", name="uq_prompt_number"),)

    id: str = Field(primary_key=True)  # <name>@<number>
    name: str
    number: int  # 1, 2, ... per name
    text: str
    actor: str
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class PromptUse(SQLModel, table=True):
    """Who gets which prompts: for each key, and for all others (no key), the newest row counts."""

    __tablename__ = "prompt_use"

    id: int | None = Field(default=None, primary_key=True)
    key_id: str | None = None
    arms: list[dict[str, Any]] | None = Field(
        sa_column=Column(JSON(none_as_null=True))
    )  # version, weight; empty: no prompt; None: as for all others
    salt: str  # of the hash that assigns users
    actor: str
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Replica(SQLModel, table=True):
    """What one server process holds. Written by that replica alone."""

    __tablename__ = "replica"

    id: str = Field(primary_key=True)
    address: str
    ready: bool = False
    base_version: str | None = None
    holds: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  # proved by a probe
    problems: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # version: why not
    started_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    heartbeat_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class TrainingRun(SQLModel, table=True):
    __tablename__ = "training_run"

    id: str = Field(primary_key=True)
    state: str = RunState.RUNNING
    stage: str = "starting"  # starting, samples, reward model, ppo, evaluation, publishing, done
    progress: float = 0.0  # 0..1
    message: str = ""  # one line for people: what it is doing now
    last_vote_id: int = 0  # the newest vote that this run has seen
    votes: int = 0
    config: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    metrics: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    policy_version: str | None = None
    report_path: str | None = None  # relative to the home folder
    error: str | None = None
    started_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class RewardModel(SQLModel, table=True):
    __tablename__ = "reward_model"

    id: str = Field(primary_key=True)
    run_id: str = Field(index=True)
    path: str
    metrics: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class TrainingSample(SQLModel, table=True):
    """Lineage: one vote that one reward model learned from (or was tested on)."""

    __tablename__ = "training_sample"
    # One vote can be two samples: a thumb, and the correction that came with it.
    __table_args__ = (UniqueConstraint("run_id", "vote_id", "kind", name="uq_sample_vote"),)

    id: int | None = Field(default=None, primary_key=True)
    run_id: str = Field(index=True)
    reward_model_id: str | None = None
    vote_id: int = Field(index=True)
    user_id: str = Field(index=True)
    kind: str  # thumb, pair, rating, correction
    split: str  # train, held_out
    weight: float = 1.0


class Lease(SQLModel, table=True):
    """Held by at most one process; `fence` grows with every holder, so that a loser's writes can be refused."""

    __tablename__ = "lease"

    name: str = Field(primary_key=True)
    holder: str
    fence: int
    expires_at: datetime = Field(sa_type=UtcDateTime)
