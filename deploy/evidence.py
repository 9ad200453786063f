"""What the log says about a rollout, read anew at each look: whom each arm served, and what they said of it.

Votes are the effective ones, without those in quarantine; a vote counts for the step in which its reply was written,
however late it comes. Which arm and which step a reply belongs to is what was logged with it: its arm, and the
probability of that arm, which is the step's share or the rest. Replies written while the candidate was not held
(probability 1 for the stable policy) are no part of the experiment.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import and_, case, func, or_, select
from sqlmodel import Session

from deploy import rollout
from deploy.decision import Compared, Evidence, Served
from feedback.samples import ended_well
from feedback.schema import Comparison, Reply, ReplyState, Rollout, RolloutEvent, TargetKind, now
from feedback.statements import table
from feedback.verdicts import effective_vote

_CANARY, _STABLE = "canary", "stable"
_DIGITS = 9  # 1 - (1 - 0.05) is not 0.05


def gather(session: Session, row: Rollout, at: datetime | None = None) -> Evidence:
    """Everything since the rollout began; of a rollout in canary."""
    last = rollout.last_event(session, row)
    step = rollout.step_began(session, row)
    served = _served(session, row)
    compared, recent = _compared(session, row, step)
    thumbs = sum(each.up + each.down for each in served if each.share == round(row.share, _DIGITS))
    return Evidence(
        candidate=row.candidate_version,
        stable=row.stable_version,
        share=row.share,
        last_event_id=last.id or 0,
        minutes=((at or now()) - last.created_at).total_seconds() / 60,
        step_votes=thumbs + recent,
        held=_held(last),
        served=served,
        compared=compared,
    )


def _held(last: RolloutEvent) -> str:
    if last.action != rollout.Action.HOLD:
        return ""
    return f"held by {last.actor}" + (f": {last.reason}" if last.reason else "")


def _served(session: Session, row: Rollout) -> list[Served]:
    reply, vote = table(Reply), effective_vote
    own = and_(
        vote.c.target_kind == TargetKind.REPLY.value,
        vote.c.target_id == reply.c.id,
        vote.c.user_id == reply.c.user_id,
        ~vote.c.quarantined,
    )
    can_be_voted_on = ended_well(reply)
    statement = (
        select(
            reply.c.user_id,
            reply.c.arm,
            reply.c.propensity,
            func.count().filter(can_be_voted_on),
            func.count().filter(and_(can_be_voted_on, vote.c.thumb == "up")),
            func.count().filter(and_(can_be_voted_on, vote.c.thumb == "down")),
            func.count().filter(reply.c.state == ReplyState.FAILED.value),
            func.count().filter(or_(vote.c.harmful, reply.c.safety_flag.is_not(None))),
        )
        .select_from(reply.outerjoin(vote, own))
        .where(
            reply.c.policy_version.in_([row.candidate_version, row.stable_version]),
            reply.c.created_at >= row.created_at,
            reply.c.source == "chat",
            or_(reply.c.arm == _CANARY, and_(reply.c.arm == _STABLE, reply.c.propensity < 1.0)),
        )
        .group_by(reply.c.user_id, reply.c.arm, reply.c.propensity)
        .order_by(reply.c.user_id, reply.c.arm, reply.c.propensity)
    )
    return [
        Served(user, arm == _CANARY, round(propensity if arm == _CANARY else 1.0 - propensity, _DIGITS), *counts)
        for user, arm, propensity, *counts in session.execute(statement)
    ]


def _compared(session: Session, row: Rollout, step_began: datetime) -> tuple[list[Compared], int]:
    """And how many of the choices are about comparisons of this step."""
    comparison, vote = table(Comparison), effective_vote
    left, right = table(Reply).alias("left_reply"), table(Reply).alias("right_reply")
    candidate, stable = row.candidate_version, row.stable_version
    on_left = and_(left.c.policy_version == candidate, right.c.policy_version == stable)
    on_right = and_(left.c.policy_version == stable, right.c.policy_version == candidate)
    candidates_side = case((on_left, "left"), else_="right")
    decided = vote.c.choice.in_(["left", "right"])
    statement = (
        select(
            comparison.c.user_id,
            func.count().filter(vote.c.choice == candidates_side),
            func.count().filter(and_(decided, vote.c.choice != candidates_side)),
            func.count().filter(~decided),
            func.count().filter(comparison.c.created_at >= step_began),
        )
        .select_from(comparison)
        .join(left, left.c.id == comparison.c.left_reply_id)
        .join(right, right.c.id == comparison.c.right_reply_id)
        .join(
            vote,
            and_(
                vote.c.target_kind == TargetKind.COMPARISON.value,
                vote.c.target_id == comparison.c.id,
                vote.c.user_id == comparison.c.user_id,
            ),
        )
        .where(
            or_(on_left, on_right),
            comparison.c.created_at >= row.created_at,
            comparison.c.source == "chat",
            vote.c.choice.is_not(None),
            ~vote.c.quarantined,
        )
        .group_by(comparison.c.user_id)
        .order_by(comparison.c.user_id)
    )
    rows = session.execute(statement).all()
    return [Compared(user, won, lost, level) for user, won, lost, level, _ in rows], sum(each[-1] for each in rows)
