"""Casting, changing and withdrawing a vote. Every change of mind is a new revision; no row is ever updated.

A user votes on replies of their own that have ended, and on comparisons of their own whose replies have both ended.
Whatever else arrives is refused. Which revision counts is not decided here: see `feedback.verdicts`.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from sqlalchemy import FromClause, and_, bindparam, false, func, select

from feedback.ballots import Ballot, check_key, member
from feedback.errors import IdempotencyConflict, StorageBusy, UnknownTarget, Unvotable
from feedback.prepared import Prepared, PreparedInsert
from feedback.schema import SHADOW, Comparison, Conversation, Reply, ReplyState, TargetKind, Vote, now
from feedback.statements import Executor, columns, table

_ATTEMPTS = 100  # of a vote that keeps meeting another revision of itself


__all__ = ["Ballot", "JudgedReply", "VoteOutcome", "VoteResult", "cast_vote", "withdraw_vote"]


class VoteOutcome(StrEnum):
    ACCEPTED = "accepted"  # the first vote on this target, or the first after a withdrawal
    CHANGED = "changed"
    DUPLICATE = "duplicate"  # nothing new was said; nothing was written
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class JudgedReply:
    """What metrics tell of a reply that was voted on."""

    arm: str
    policy_version: str
    finished_at: datetime | None


@dataclass(frozen=True)
class VoteResult:
    vote_id: int
    revision: int
    outcome: VoteOutcome
    replies: tuple[JudgedReply, ...] = ()  # that were voted on, where they had to be looked at
    flagged: bool = False  # as harmful, which the revision before did not say


def cast_vote(
    session: Executor,
    *,
    user_id: str,
    target_kind: str,
    target_id: str,
    ballot: Ballot,
    idempotency_key: str | None = None,
) -> VoteResult:
    """Appends a revision, unless the vote that counts says the same already.

    With an idempotency key, the same key and body answer with the first result, however late they come and whatever
    was voted since. A key is remembered with the revision that it wrote: one that wrote none (a duplicate) is not.

    Raises:
        UnknownTarget: no such target, not this user's, or in a deleted conversation.
        Unvotable: a reply that has not ended well.
        BadBallot: the ballot does not fit the target.
        IdempotencyConflict: the key came before with another body.
    """
    kind = member(TargetKind, "target_kind", target_kind)
    ballot.check_for(TargetKind(kind))
    check_key(idempotency_key)
    digest = body_digest(kind, target_id, ballot)
    for _ in range(_ATTEMPTS):
        try:
            found = _votable(session, kind, user_id, target_id)
        except (UnknownTarget, Unvotable):
            if (prior := _answered(session, user_id, idempotency_key, digest)) is not None:
                return prior
            raise
        fresh = found.revision is None or found.withdrawn
        if not fresh and found.body_digest == digest:
            prior = _answered(session, user_id, idempotency_key, digest)
            return prior or VoteResult(found.vote_id, found.revision, VoteOutcome.DUPLICATE, _judged(kind, found))
        revision = (found.revision or 0) + 1
        row = _row(kind, target_id, user_id, revision) | ballot.values()
        row |= {"idempotency_key": idempotency_key, "body_digest": digest}
        vote_id = _INSERT.append(session, row)
        if vote_id is not None:
            outcome = VoteOutcome.ACCEPTED if fresh else VoteOutcome.CHANGED
            flagged = ballot.harmful and (fresh or not found.harmful)
            return VoteResult(vote_id, revision, outcome, _judged(kind, found), flagged)
        # The key was used before, or another connection wrote this revision in between: then come after it.
        if (prior := _answered(session, user_id, idempotency_key, digest)) is not None:
            return prior
    raise StorageBusy("many votes on one target at once: try again")


def withdraw_vote(session: Executor, *, user_id: str, target_kind: str, target_id: str) -> VoteResult:
    """Takes a vote back, by a revision that says so. Always possible, even when the target is no longer votable.

    Raises:
        UnknownTarget: this user never voted on it.
    """
    kind = member(TargetKind, "target_kind", target_kind)
    for _ in range(_ATTEMPTS):
        latest = session.execute(_LATEST, {"target_kind": kind, "target_id": target_id, "voter": user_id}).first()
        if latest is None:
            raise UnknownTarget(f"you have no vote on {target_id}")
        if latest.withdrawn:
            return VoteResult(latest.id, latest.revision, VoteOutcome.DUPLICATE)
        row = _row(str(kind), target_id, user_id, latest.revision + 1) | {"withdrawn": True}
        vote_id = _INSERT.append(session, row)
        if vote_id is not None:
            return VoteResult(vote_id, latest.revision + 1, VoteOutcome.WITHDRAWN)
    raise StorageBusy("many votes on one target at once: try again")


def _row(kind: str, target_id: str, user_id: str, revision: int) -> dict[str, Any]:
    return {
        "target_kind": kind,
        "target_id": target_id,
        "user_id": user_id,
        "revision": revision,
        "withdrawn": False,
        "thumb": None,
        "rating": None,
        "reasons": [],
        "comment": None,
        "correction": None,
        "harmful": False,
        "choice": None,
        "idempotency_key": None,
        "body_digest": None,
        "quarantined": False,
        "created_at": now(),
    }


_VOTE = table(Vote)
_INSERT = PreparedInsert(_VOTE)
_LATEST = (
    select(_VOTE.c.id, _VOTE.c.revision, _VOTE.c.withdrawn)
    .where(
        _VOTE.c.target_kind == bindparam("target_kind"),
        _VOTE.c.target_id == bindparam("target_id"),
        _VOTE.c.user_id == bindparam("voter"),
    )
    .order_by(_VOTE.c.revision.desc())
    .limit(1)
)
_BY_KEY = select(_VOTE.c.id, _VOTE.c.revision, _VOTE.c.body_digest).where(
    _VOTE.c.user_id == bindparam("voter"), _VOTE.c.idempotency_key == bindparam("key")
)


def _answered(session: Executor, user_id: str, key: str | None, digest: str) -> VoteResult | None:
    """The result that this key had the first time. Asked only where an insert could not tell: it is one more query."""
    if key is None:
        return None
    prior = session.execute(_BY_KEY, {"voter": user_id, "key": key}).first()
    if prior is None:
        return None
    if prior.body_digest != digest:
        raise IdempotencyConflict("this idempotency key was used before, with another body")
    return VoteResult(prior.id, prior.revision, VoteOutcome.DUPLICATE)


@lru_cache(maxsize=2)
def _target_statement(kind: str) -> Prepared:
    """The target, the states of its replies and the voter's latest revision, in one round trip."""
    conversation = columns(Conversation)
    if kind == TargetKind.REPLY:
        target = table(Reply)
        replies: list[FromClause] = [target]
        joined = target.outerjoin(table(Conversation), conversation.id == target.c.conversation_id)
        unseen = target.c.source == SHADOW
    else:
        target, unseen = table(Comparison), false()
        replies = [table(Reply).alias("left_reply"), table(Reply).alias("right_reply")]
        joined = target.outerjoin(table(Conversation), conversation.id == target.c.conversation_id)
        joined = joined.join(replies[0], replies[0].c.id == target.c.left_reply_id)
        joined = joined.join(replies[1], replies[1].c.id == target.c.right_reply_id)
    joined = joined.outerjoin(_VOTE, and_(_VOTE.c.target_id == target.c.id, _VOTE.c.user_id == bindparam("voter")))
    states = [
        column.label(f"{name}_{index}")
        for index, reply in enumerate(replies)
        for name, column in (
            ("state", reply.c.state),
            ("chars", func.length(reply.c.text)),
            ("arm", reply.c.arm),
            ("version", reply.c.policy_version),
            ("finished_at", reply.c.finished_at),
        )
    ]
    return Prepared(
        select(
            target.c.user_id,
            conversation.deleted_at,
            *states,
            _VOTE.c.id.label("vote_id"),
            _VOTE.c.revision,
            _VOTE.c.withdrawn,
            _VOTE.c.harmful,
            _VOTE.c.body_digest,
        )
        .select_from(joined)
        .where(target.c.id == bindparam("target"), ~unseen)
        .order_by(_VOTE.c.revision.desc())
        .limit(1)
    )


def _votable(session: Executor, kind: str, user_id: str, target_id: str) -> Any:
    found = _target_statement(kind).first(session, {"target": target_id, "voter": user_id})
    if found is None or found.user_id != user_id or found.deleted_at is not None:
        raise UnknownTarget(f"there is no {kind} {target_id}")
    states = [(found.state_0, found.chars_0)]
    if kind == TargetKind.COMPARISON:
        states.append((found.state_1, found.chars_1))
    for state, chars in states:
        if state == ReplyState.STREAMING:
            raise Unvotable(f"{kind} {target_id} is still being written")
        if state not in (ReplyState.COMPLETE, ReplyState.STOPPED) or (state == ReplyState.STOPPED and not chars):
            raise Unvotable(f"{kind} {target_id} cannot be voted on: a reply of it is {state}")
    return found


def _judged(kind: str, found: Any) -> tuple[JudgedReply, ...]:
    first = JudgedReply(found.arm_0, found.version_0, found.finished_at_0)
    if kind == TargetKind.REPLY:
        return (first,)
    return first, JudgedReply(found.arm_1, found.version_1, found.finished_at_1)


def body_digest(kind: str, target_id: str, ballot: Ballot) -> str:
    body = _CANONICAL.encode([kind, target_id, ballot.values()])
    return hashlib.sha256(body.encode()).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # json.dumps would make one for every vote
