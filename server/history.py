"""What a user may see of the log: their own conversations, replies and votes, as plain JSON values.

The policies of a comparison stay hidden until its user has chosen, and stay revealed after a choice was withdrawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Text, cast, or_
from sqlmodel import Session, col, select

from feedback.errors import UnknownTarget
from feedback.schema import SHADOW, Comparison, Conversation, Reply, TargetKind, Vote, now
from feedback.verdicts import effective_vote

_VOTE_FIELDS = ("thumb", "rating", "reasons", "comment", "correction", "harmful", "choice")


def listed(session: Session, user_id: str, limit: int, before: str | None = None) -> list[dict[str, Any]]:
    """Newest first. `before` is the id of the last one of the page before."""
    query = select(Conversation).where(Conversation.user_id == user_id, col(Conversation.deleted_at).is_(None))
    if before is not None:
        last = own(session, user_id, before)
        query = query.where(col(Conversation.updated_at) < last.updated_at)
    rows = session.exec(query.order_by(col(Conversation.updated_at).desc()).limit(limit))
    return [_head(row) for row in rows]


def found(session: Session, user_id: str, words: str, limit: int) -> list[dict[str, Any]]:
    """Conversations whose title, questions or answers have `words` in them, in any case, newest first."""
    wanted = words.casefold()
    # The database narrows it down. JSON is stored with \uXXXX for what is not ASCII, and its keys are no one's words.
    spelled = json.dumps(words)[1:-1]
    replies = session.execute(
        select(Reply.conversation_id, Reply.text, Reply.messages).where(
            Reply.user_id == user_id,
            Reply.source != SHADOW,
            or_(
                col(Reply.text).icontains(words, autoescape=True),
                cast(col(Reply.messages), Text).icontains(spelled, autoescape=True),
            ),
        )
    )
    said = {
        conversation_id
        for conversation_id, text, messages in replies
        if wanted in text.casefold() or any(wanted in each.casefold() for each in _questions(messages))
    }
    rows = session.exec(
        select(Conversation)
        .where(Conversation.user_id == user_id, col(Conversation.deleted_at).is_(None))
        .order_by(col(Conversation.updated_at).desc())
    )
    return [_head(row) for row in rows if row.id in said or wanted in row.title.casefold()][:limit]


def _questions(messages: Iterable[dict[str, Any]]) -> list[str]:
    return [str(message.get("content") or "") for message in messages if message.get("role") == "user"]


def whole(session: Session, user_id: str, conversation_id: str) -> dict[str, Any]:
    return _whole(session, own(session, user_id, conversation_id))


def _whole(session: Session, conversation: Conversation) -> dict[str, Any]:
    user_id, conversation_id = conversation.user_id, conversation.id
    replies = session.exec(
        select(Reply)
        .where(Reply.conversation_id == conversation_id, Reply.source != SHADOW)
        .order_by(col(Reply.created_at), col(Reply.id))
    ).all()
    comparisons = session.exec(select(Comparison).where(Comparison.conversation_id == conversation_id)).all()
    votes = _votes(session, user_id, [*(reply.id for reply in replies), *(each.id for each in comparisons)])
    chosen = _ever_chosen(session, user_id, [each.id for each in comparisons])
    policies = {reply.id: reply.policy_version for reply in replies}
    return {
        **_head(conversation),
        "replies": [
            _reply(reply, votes.get(reply.id), hidden=reply.comparison_id not in (None, *chosen)) for reply in replies
        ],
        "comparisons": [
            {
                "id": each.id,
                "left_reply_id": each.left_reply_id,
                "right_reply_id": each.right_reply_id,
                "vote": votes.get(each.id),
                "revealed": {
                    "left": policies.get(each.left_reply_id),
                    "right": policies.get(each.right_reply_id),
                }
                if each.id in chosen
                else None,
            }
            for each in comparisons
        ],
    }


def one(session: Session, user_id: str, reply_id: str) -> dict[str, Any]:
    reply = session.get(Reply, reply_id)
    if reply is None or reply.user_id != user_id or reply.source == SHADOW:
        raise UnknownTarget(f"there is no reply {reply_id}")
    own(session, user_id, reply.conversation_id)
    vote = _votes(session, user_id, [reply_id]).get(reply_id)
    hidden = reply.comparison_id is not None and not _ever_chosen(session, user_id, [reply.comparison_id])
    return {"object": "reply", "conversation_id": reply.conversation_id, **_reply(reply, vote, hidden=hidden)}


def rename(session: Session, user_id: str, conversation_id: str, title: str) -> dict[str, Any]:
    conversation = own(session, user_id, conversation_id)
    conversation.title = title
    session.add(conversation)
    return _head(conversation)


def delete(session: Session, user_id: str, conversation_id: str) -> None:
    """Out of the user's sight. What the log keeps of it is the retention policy's matter."""
    conversation = own(session, user_id, conversation_id)
    conversation.deleted_at = now()
    session.add(conversation)


def own(session: Session, user_id: str, conversation_id: str) -> Conversation:
    found = session.get(Conversation, conversation_id)
    if found is None or found.user_id != user_id or found.deleted_at is not None:
        raise UnknownTarget(f"there is no conversation {conversation_id}")
    return found


def everything(session: Session, user_id: str) -> dict[str, Any]:
    """All that is stored about a user, for them to take away."""
    rows = session.exec(
        select(Conversation).where(Conversation.user_id == user_id).order_by(col(Conversation.created_at))
    ).all()
    revisions = session.exec(select(Vote).where(Vote.user_id == user_id).order_by(col(Vote.id))).all()
    return {
        "user_id": user_id,
        "exported_at": now(),
        "conversations": [{**_whole(session, row), "deleted_at": row.deleted_at} for row in rows],
        "votes": [
            {
                "target_kind": vote.target_kind,
                "target_id": vote.target_id,
                "revision": vote.revision,
                "withdrawn": vote.withdrawn,
                "created_at": vote.created_at,
                **{name: getattr(vote, name) for name in _VOTE_FIELDS},
            }
            for vote in revisions
        ],
    }


def _head(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "title": conversation.title,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
    }


def _reply(reply: Reply, vote: dict[str, Any] | None, *, hidden: bool) -> dict[str, Any]:
    return {
        "id": reply.id,
        "parent_id": reply.parent_id,
        "regenerate_of": reply.regenerate_of,
        "comparison_id": reply.comparison_id,
        "side": reply.side,
        "created_at": reply.created_at,
        "finished_at": reply.finished_at,
        "state": reply.state,
        "finish_reason": reply.finish_reason,
        "messages": reply.messages if reply.prompt_version is None else reply.messages[1:],  # without the operator's
        "text": reply.text,
        "policy_version": None if hidden else reply.policy_version,
        "vote": vote,
    }


def _votes(session: Session, user_id: str, target_ids: list[str]) -> dict[str, dict[str, Any]]:
    view = effective_vote.c
    rows = session.execute(effective_vote.select().where(view.user_id == user_id, view.target_id.in_(target_ids)))
    return {row.target_id: {name: getattr(row, name) for name in _VOTE_FIELDS} for row in rows}


def _ever_chosen(session: Session, user_id: str, comparison_ids: Iterable[str]) -> set[str]:
    return set(
        session.exec(
            select(Vote.target_id).where(
                Vote.user_id == user_id,
                Vote.target_kind == TargetKind.COMPARISON,
                col(Vote.target_id).in_(list(comparison_ids)),
            )
        )
    )
