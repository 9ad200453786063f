"""The life of a reply: begun before its first token, ended once, or found unfinished after a crash.

Operations for the ledger (or for any write transaction). They append and end; what users then say about a reply is in
`feedback.votes`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, or_, select
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

from feedback.errors import IllegalTransition, UnknownTarget, UserErased
from feedback.packing import pack_ids, pack_logprobs
from feedback.prepared import Prepared
from feedback.refusals import refuses
from feedback.schema import Comparison, Conversation, Replica, Reply, ReplyState, User, now
from feedback.statements import Executor, columns, dialect_of, insert_if_new, table
from feedback.tombstones import erased_among

_ENDS = frozenset({ReplyState.COMPLETE, ReplyState.STOPPED, ReplyState.FAILED, ReplyState.INCOMPLETE})
TRANSITIONS: dict[str, frozenset[ReplyState]] = {
    ReplyState.STREAMING: _ENDS,
    **{state: frozenset() for state in _ENDS},
}
"""From each state, the states that may follow."""

SILENT_SECONDS = 600.0
"""A server that has not been heard of for so long is taken for dead."""

_TOUCH = Prepared(
    table(Conversation)
    .update()
    .where(columns(Conversation).id == bindparam("conversation"))
    .values(updated_at=bindparam("at"))
)


@lru_cache(maxsize=8)
def _new(dialect: str, model: type[SQLModel]) -> Prepared:
    """Inserts a row where there is none yet, and then gives its key."""
    return Prepared(insert_if_new(dialect, table(model)), _names(model))


@lru_cache(maxsize=8)
def _insert(model: type[SQLModel]) -> Prepared:
    return Prepared(table(model).insert(), _names(model))


@lru_cache(maxsize=64)
def _end(given: frozenset[str]) -> Prepared:
    """Ends a streaming reply with these columns; gives its id."""
    reply = columns(Reply)
    streaming = (reply.id == bindparam("target"), reply.state == ReplyState.STREAMING.value)
    return Prepared(table(Reply).update().where(*streaming).returning(reply.id), sorted(given))


def _names(model: type[SQLModel]) -> list[str]:
    return [column.name for column in table(model).columns]


def ensure_user(session: Executor, user_id: str) -> None:
    """Makes the user if they are new. Raises UserErased for one who was erased."""
    row = {"id": user_id, "created_at": now(), "consent": None, "erased_at": None}
    # Only a user without a row can be an erased one, so most calls are one statement.
    if _new(dialect_of(session), User).first(session, row) is not None and erased_among(session, [user_id]):
        raise UserErased("this user was erased; nothing more is kept under their id, so use another one")


def ensure_conversation(session: Executor, *, conversation_id: str, user_id: str, title: str = "") -> bool:
    """Makes the conversation, and tells whether it was new. Someone else's, or a deleted one, is unknown."""
    at = now()
    row = {"id": conversation_id, "user_id": user_id, "title": title, "created_at": at, "updated_at": at}
    if _new(dialect_of(session), Conversation).first(session, {**row, "deleted_at": None}) is not None:
        return True
    found = session.execute(
        select(columns(Conversation).user_id, columns(Conversation).deleted_at).where(
            columns(Conversation).id == conversation_id
        )
    ).one()
    if found.user_id != user_id or found.deleted_at is not None:
        raise UnknownTarget(f"there is no conversation {conversation_id}")
    return False


def begin_reply(session: Executor, reply: Reply, title: str = "") -> str:
    """Appends a reply that is about to be generated; its conversation and user are made if they are new."""
    ensure_user(session, reply.user_id)
    new = ensure_conversation(session, conversation_id=reply.conversation_id, user_id=reply.user_id, title=title)
    if not new:
        _TOUCH.run(session, {"conversation": reply.conversation_id, "at": reply.created_at})
    _append(session, reply)
    return reply.id


def begin_comparison(session: Executor, comparison: Comparison, left: Reply, right: Reply) -> str:
    """Appends a comparison and its two replies, tied together and given their sides."""
    for side, reply in (("left", left), ("right", right)):
        reply.comparison_id = comparison.id
        reply.side = side
        reply.conversation_id = comparison.conversation_id
        reply.user_id = comparison.user_id
        begin_reply(session, reply)
    comparison.left_reply_id, comparison.right_reply_id = left.id, right.id
    _append(session, comparison)
    return comparison.id


def finish_reply(
    session: Executor,
    reply_id: str,
    *,
    state: str,
    text: str,
    token_ids: Sequence[int] | None = None,
    logprobs: Sequence[float] | None = None,
    finish_reason: str | None = None,
    prompt_token_ids: Sequence[int] | None = None,
    first_token_at: datetime | None = None,
    finished_at: datetime | None = None,
    policy_version: str | None = None,
    mixed_versions: Sequence[str] | None = None,
    template_digest: str | None = None,
    safety_flag: str | None = None,
    safety: dict[str, Any] | None = None,
) -> None:
    """Ends a streaming reply. The same end twice is one end; another end is refused.

    Fields left None keep what `begin_reply` wrote.
    """
    if state not in TRANSITIONS[ReplyState.STREAMING]:
        raise IllegalTransition(f"a reply cannot end as {state!r}")
    if token_ids is not None and logprobs is not None and len(token_ids) != len(logprobs):
        raise ValueError(f"{len(token_ids)} token ids but {len(logprobs)} logprobs")
    text = storable(text)
    values: dict[str, Any] = {
        "state": str(state),
        "text": text,
        "finished_at": finished_at or now(),
        "refused": refuses(text),
    }
    optional = {
        "token_ids": None if token_ids is None else pack_ids(token_ids),
        "logprobs": None if logprobs is None else pack_logprobs(logprobs),
        "finish_reason": finish_reason,
        "prompt_token_ids": None if prompt_token_ids is None else pack_ids(prompt_token_ids),
        "first_token_at": first_token_at,
        "policy_version": policy_version,
        "mixed_versions": None if mixed_versions is None else list(mixed_versions),
        "template_digest": template_digest,
        "safety_flag": safety_flag,
        "safety": safety,
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    if _end(frozenset(values)).first(session, {"target": reply_id, **values}) is not None:
        return
    found = session.execute(
        select(columns(Reply).state, columns(Reply).text).where(columns(Reply).id == reply_id)
    ).first()
    if found is None:
        raise UnknownTarget(f"there is no reply {reply_id}")
    if (found.state, found.text) != (str(state), text):
        raise IllegalTransition(f"reply {reply_id} is {found.state} already; it cannot become {state}")


def append_shadow(session: Session, reply: Reply) -> None:
    """A reply that is whole already and that nobody saw. Not kept when what it belongs to is gone meanwhile."""
    conversation = columns(Conversation)
    still_there = select(conversation.id).where(
        conversation.id == reply.conversation_id,
        conversation.user_id == reply.user_id,
        conversation.deleted_at.is_(None),
    )
    if session.execute(still_there).first() is not None:
        _append(session, reply)


def recover_unfinished(session: Session, replica_id: str) -> int:
    """Replies that were streaming when this server last died become incomplete: not voted on, not trained on.

    Run once when it starts, before it takes requests. Also takes those of servers that died and never came back.
    """
    reply = columns(Reply)
    own = or_(reply.replica_id == replica_id, reply.replica_id.is_(None))
    return _make_incomplete(session, or_(own, _abandoned()))


def recover_abandoned(session: Session, replica_id: str) -> int:
    """Those of servers that died and never came back: begun more than ten minutes ago, by one that has been silent as
    long. Run by any server that lives, at any time; what is streaming there, or on this server, is left alone."""
    return _make_incomplete(session, and_(_abandoned(), columns(Reply).replica_id != replica_id))


def _abandoned() -> ColumnElement[bool]:
    reply, long_ago = columns(Reply), now() - timedelta(seconds=SILENT_SECONDS)
    heard_of = select(columns(Replica).id).where(columns(Replica).heartbeat_at > long_ago)
    return and_(reply.created_at < long_ago, reply.replica_id.not_in(heard_of))


def _make_incomplete(session: Session, of: ColumnElement[bool]) -> int:
    reply = columns(Reply)
    rows = session.execute(
        table(Reply)
        .update()
        .where(reply.state == ReplyState.STREAMING.value, of)
        .values(state=ReplyState.INCOMPLETE.value, finished_at=now())
        .returning(reply.id)
    )
    return len(rows.all())


def storable(text: str) -> str:
    """The text as both databases can hold it: a model can emit NUL, which PostgreSQL's text type refuses."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _append(session: Executor, row: SQLModel) -> None:
    # Not `session.add`: a stream begins and ends in every request, and the unit of work costs more than the insert.
    _insert(type(row)).run(session, {name: getattr(row, name) for name in _names(type(row))})
