"""Casting, changing and withdrawing a vote. Every change of mind is a new revision; no row is ever updated.

A user votes on replies of their own that have ended, and on comparisons of their own whose replies have both ended.
Whatever else arrives is refused. Which revision counts is not decided here: see `feedback.verdicts`.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from sqlalchemy import FromClause, Select, and_, bindparam, func, select
from sqlalchemy.orm import Session

from feedback.errors import BadBallot, IdempotencyConflict, StorageBusy, UnknownTarget, Unvotable
from feedback.schema import Choice, Comparison, Conversation, Reply, ReplyState, TargetKind, Thumb, Vote, now
from feedback.statements import columns, insert_ignore, table

MAX_REASONS = 16
MAX_REASON_CHARS = 64
MAX_COMMENT_CHARS = 4_000
MAX_CORRECTION_CHARS = 32_000
MAX_KEY_CHARS = 200
_ATTEMPTS = 20  # of a vote that keeps meeting another revision of itself


class VoteOutcome(StrEnum):
    ACCEPTED = "accepted"  # the first vote on this target, or the first after a withdrawal
    CHANGED = "changed"
    DUPLICATE = "duplicate"  # nothing new was said; nothing was written
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """What a user says about one target. Checked when it is made; blank texts count as absent.

    Raises:
        BadBallot: with a message for the user that names the field.
    """

    thumb: str | None = None
    rating: float | None = None
    reasons: Sequence[str] = ()
    comment: str | None = None
    correction: str | None = None
    harmful: bool = False
    choice: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen for everyone else
        put(self, "thumb", _member(Thumb, "thumb", self.thumb))
        put(self, "choice", _member(Choice, "choice", self.choice))
        put(self, "rating", _rating(self.rating))
        put(self, "reasons", _reasons(self.reasons))
        put(self, "comment", _words("comment", self.comment, MAX_COMMENT_CHARS))
        put(self, "correction", _words("correction", self.correction, MAX_CORRECTION_CHARS))
        if not isinstance(self.harmful, bool):
            raise BadBallot("harmful: must be true or false")
        given = (self.thumb, self.rating, self.comment, self.correction, self.choice)
        if not (self.harmful or self.reasons or any(value is not None for value in given)):
            raise BadBallot("the vote is empty: give at least one of thumb, rating, reasons, comment, correction, ...")

    def check_for(self, kind: TargetKind) -> None:
        if kind is TargetKind.REPLY and self.choice is not None:
            raise BadBallot("choice: only a comparison takes a choice")
        if kind is TargetKind.COMPARISON:
            if self.choice is None:
                raise BadBallot("choice: a comparison needs one of left, right, tie, both_bad")
            if self.harmful or any(value is not None for value in (self.thumb, self.rating, self.correction)):
                raise BadBallot("a comparison takes choice, reasons and comment; vote on its replies for the rest")

    def values(self) -> dict[str, Any]:
        """The columns of a vote that the user fills."""
        return {
            "thumb": self.thumb,
            "rating": self.rating,
            "reasons": list(self.reasons),
            "comment": self.comment,
            "correction": self.correction,
            "harmful": self.harmful,
            "choice": self.choice,
        }


@dataclass(frozen=True)
class VoteResult:
    vote_id: int
    revision: int
    outcome: VoteOutcome


def cast_vote(
    session: Session,
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
    kind = _member(TargetKind, "target_kind", target_kind)
    assert kind is not None
    ballot.check_for(TargetKind(kind))
    _check_key(idempotency_key)
    digest = _digest(kind, target_id, ballot)
    for _ in range(_ATTEMPTS):
        if idempotency_key is not None and (prior := _by_key(session, user_id, idempotency_key)) is not None:
            if prior.body_digest != digest:
                raise IdempotencyConflict("this idempotency key was used before, with another body")
            return VoteResult(prior.id, prior.revision, VoteOutcome.DUPLICATE)
        found = _votable(session, kind, user_id, target_id)
        fresh = found.revision is None or found.withdrawn
        if not fresh and found.body_digest == digest:
            return VoteResult(found.vote_id, found.revision, VoteOutcome.DUPLICATE)
        revision = (found.revision or 0) + 1
        row = _row(kind, target_id, user_id, revision) | ballot.values()
        row |= {"idempotency_key": idempotency_key, "body_digest": digest}
        vote_id = insert_ignore(session, Vote, row)
        if vote_id is not None:
            return VoteResult(vote_id, revision, VoteOutcome.ACCEPTED if fresh else VoteOutcome.CHANGED)
        # Another connection wrote this revision, or this key, in between: look again, and come after it.
    raise StorageBusy("many votes on one target at once: try again")


def withdraw_vote(session: Session, *, user_id: str, target_kind: str, target_id: str) -> VoteResult:
    """Takes a vote back, by a revision that says so. Always possible, even when the target is no longer votable.

    Raises:
        UnknownTarget: this user never voted on it.
    """
    kind = _member(TargetKind, "target_kind", target_kind)
    for _ in range(_ATTEMPTS):
        latest = session.execute(_LATEST, {"target_kind": kind, "target_id": target_id, "voter": user_id}).first()
        if latest is None:
            raise UnknownTarget(f"you have no vote on {target_id}")
        if latest.withdrawn:
            return VoteResult(latest.id, latest.revision, VoteOutcome.DUPLICATE)
        row = _row(str(kind), target_id, user_id, latest.revision + 1) | {"withdrawn": True}
        vote_id = insert_ignore(session, Vote, row)
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


def _by_key(session: Session, user_id: str, key: str) -> Any:
    return session.execute(_BY_KEY, {"voter": user_id, "key": key}).first()


@lru_cache(maxsize=2)
def _target_statement(kind: str) -> Select[Any]:
    """The target, the states of its replies and the voter's latest revision, in one round trip."""
    conversation = columns(Conversation)
    if kind == TargetKind.REPLY:
        target = table(Reply)
        replies: list[FromClause] = [target]
        joined = target.outerjoin(table(Conversation), conversation.id == target.c.conversation_id)
    else:
        target = table(Comparison)
        replies = [table(Reply).alias("left_reply"), table(Reply).alias("right_reply")]
        joined = target.outerjoin(table(Conversation), conversation.id == target.c.conversation_id)
        joined = joined.join(replies[0], replies[0].c.id == target.c.left_reply_id)
        joined = joined.join(replies[1], replies[1].c.id == target.c.right_reply_id)
    joined = joined.outerjoin(_VOTE, and_(_VOTE.c.target_id == target.c.id, _VOTE.c.user_id == bindparam("voter")))
    states = [
        column
        for index, reply in enumerate(replies)
        for column in (reply.c.state.label(f"state_{index}"), func.length(reply.c.text).label(f"chars_{index}"))
    ]
    return (
        select(
            target.c.user_id,
            conversation.deleted_at,
            *states,
            _VOTE.c.id.label("vote_id"),
            _VOTE.c.revision,
            _VOTE.c.withdrawn,
            _VOTE.c.body_digest,
        )
        .select_from(joined)
        .where(target.c.id == bindparam("target"))
        .order_by(_VOTE.c.revision.desc())
        .limit(1)
    )


def _votable(session: Session, kind: str, user_id: str, target_id: str) -> Any:
    found = session.execute(_target_statement(kind), {"target": target_id, "voter": user_id}).first()
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


def _digest(kind: str, target_id: str, ballot: Ballot) -> str:
    body = json.dumps([kind, target_id, ballot.values()], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


def _member(enum: type[StrEnum], field: str, value: Any) -> str | None:
    if value is None and field != "target_kind":
        return None
    try:
        return enum(value).value
    except ValueError:
        raise BadBallot(f"{field}: must be one of {', '.join(enum)}, not {str(value)[:40]!r}") from None


def _rating(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadBallot("rating: must be a number between 0 and 1")
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise BadBallot(f"rating: must be between 0 and 1, not {value}")
    return float(value)


def _words(field: str, value: Any, max_chars: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadBallot(f"{field}: must be a text")
    if len(value) > max_chars:
        raise BadBallot(f"{field}: {len(value)} characters; at most {max_chars} are kept")
    # Neither database stores these, and refusing here beats failing a whole batch there.
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise BadBallot(f"{field}: holds a NUL character or half of a surrogate pair")
    return value if value.strip() else None


def _reasons(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadBallot("reasons: must be a list of short texts")
    if len(value) > MAX_REASONS:
        raise BadBallot(f"reasons: {len(value)} given; at most {MAX_REASONS} are kept")
    words = [_words("reasons", reason, MAX_REASON_CHARS) for reason in value]
    if any(word is None for word in words):
        raise BadBallot("reasons: none may be blank")
    return tuple(sorted({word.strip() for word in words if word is not None}))


def _check_key(key: str | None) -> None:
    if key is None:
        return
    if _words("idempotency_key", key, MAX_KEY_CHARS) is None:
        raise BadBallot("idempotency_key: must not be blank")
