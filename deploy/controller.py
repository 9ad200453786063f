"""One look at the running rollout: read the evidence, decide, and act. All of its memory is in the database.

Rolling back is automatic always, going on only where the plan says so. Any number of controllers may look at once, and
any of them may die at any point: what was decided on evidence of one event is carried out in a transaction that finds
the same event still the newest, and carrying it out appends another. So nobody raises a share twice, a restarted
controller waits for the step's own time and votes like any other, and an operator who was quicker is not overruled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from sqlmodel import Session

from deploy import rollout
from deploy.decision import MISMATCHED, Decision, Verdict, decide
from deploy.evidence import gather
from deploy.locking import alone
from deploy.observed import Evidence
from deploy.settings import RolloutSettings
from feedback.schema import now
from feedback.store import Store

ACTOR = "controller"


@dataclass(frozen=True)
class Look:
    evidence: Evidence
    decision: Decision
    acted: bool = False


def assess(session: Session, plan: RolloutSettings) -> Look | None:
    """What would be decided now; None when nothing is in shadow or in canary."""
    row = rollout.current(session)
    if row is None or row.state not in rollout.UNDER_WAY:
        return None
    evidence = gather(session, row)
    return Look(evidence, decide(evidence, plan))


def look(store: Store, plan: RolloutSettings, *, dry_run: bool = False) -> Look | None:
    """One look, and what follows from it; with `dry_run` nothing follows."""
    with store.read() as session:
        found = assess(session, plan)
    if found is None or dry_run or not allowed(found.decision, plan):
        return found
    with store.write() as session:
        return replace(found, acted=carry_out(session, found))


def went_back_mismatched(session: Session) -> bool:
    """Whether the last thing that a controller did, within the last hour, was to end a rollout whose arms had not the
    users that they should have. It does so in the look that finds it, and most servers never see it otherwise."""
    for event, _ in rollout.events(session, 1):
        recent = event.created_at > now() - timedelta(hours=1)
        return (
            recent and event.actor == ACTOR and event.action == rollout.Action.ROLLBACK and MISMATCHED in event.reason
        )
    return False


def allowed(decision: Decision, plan: RolloutSettings) -> bool:
    """Whether the controller may do by itself what was decided."""
    return decision.verdict is Verdict.ROLL_BACK or (plan.automatic and decision.verdict is not Verdict.HOLD)


def carry_out(session: Session, found: Look) -> bool:
    """False when something else was decided since the evidence was read: then the next look sees to it."""
    alone(session)
    row = rollout.current(session)
    if row is None or (rollout.last_event(session, row).id or 0) != found.evidence.last_event_id:
        return False
    decision = found.decision
    if decision.verdict is Verdict.ROLL_BACK:
        rollout.rollback(session, ACTOR, decision.reason)
    elif decision.verdict is Verdict.PROMOTE:
        rollout.promote(session, ACTOR, decision.reason)
    else:
        rollout.advance(session, ACTOR, decision.reason, share=decision.share)
    return True
