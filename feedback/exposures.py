"""What people were shown and could have voted on, voted on or not: whose votes, about what, the log is short of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from feedback.samples import ended_well, same_question
from feedback.schema import Comparison, Conversation, Reply, TargetKind, User
from feedback.statements import table
from feedback.verdicts import effective_vote


@dataclass(frozen=True)
class Exposure:
    kind: TargetKind
    user_id: str
    texts: tuple[str, ...]  # the reply, or both sides
    voted: bool


def exposures(session: Session, *, consent_default: bool, newest: int) -> list[Exposure]:
    """The newest so many replies, and as many comparisons, that people who agreed to training saw whole in the chat."""
    reply, comparison = table(Reply), table(Comparison)
    left, right = reply.alias("left_reply"), reply.alias("right_reply")
    single = (
        _shown(reply, TargetKind.REPLY, consent_default, reply.c.text)
        .where(ended_well(reply), reply.c.comparison_id.is_(None), reply.c.source == "chat")
        .order_by(reply.c.created_at.desc(), reply.c.id)
    )
    pair = (
        _shown(comparison, TargetKind.COMPARISON, consent_default, left.c.text, right.c.text)
        .join(left, left.c.id == comparison.c.left_reply_id)
        .join(right, right.c.id == comparison.c.right_reply_id)
        .where(ended_well(left), ended_well(right), same_question(left, right), comparison.c.source == "chat")
        .order_by(left.c.created_at.desc(), comparison.c.id)
    )
    return [
        Exposure(kind, user_id, tuple(texts), voted)
        for kind, statement in ((TargetKind.REPLY, single), (TargetKind.COMPARISON, pair))
        for user_id, voted, *texts in session.execute(statement.limit(newest))
    ]


def _shown(target: Any, kind: TargetKind, consent_default: bool, *texts: Any) -> Any:
    user, conversation = table(User), table(Conversation)
    own = and_(
        effective_vote.c.target_kind == kind.value,
        effective_vote.c.target_id == target.c.id,
        effective_vote.c.user_id == target.c.user_id,
    )
    columns: Sequence[Any] = (target.c.user_id, effective_vote.c.id.is_not(None), *texts)
    return (
        select(*columns)
        .select_from(target)
        .outerjoin(effective_vote, own)
        .outerjoin(user, user.c.id == target.c.user_id)
        .outerjoin(conversation, conversation.c.id == target.c.conversation_id)
        .where(
            user.c.erased_at.is_(None),
            func.coalesce(user.c.consent, consent_default),
            conversation.c.deleted_at.is_(None),
        )
    )
