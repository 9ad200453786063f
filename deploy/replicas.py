"""What the replicas say they hold; read here, written by each replica alone."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from sqlmodel import Session, col, select

from deploy import rollout
from feedback.schema import Policy, PolicyKind, Replica, now

SILENT_AFTER_SECONDS = 30.0


def replicas(session: Session) -> list[tuple[Replica, bool]]:
    """Each replica of the last day, and whether it has been heard of lately."""
    at = now()
    rows = session.exec(
        select(Replica).where(col(Replica.heartbeat_at) > at - timedelta(days=1)).order_by(col(Replica.id))
    ).all()
    return [(row, at - row.heartbeat_at < timedelta(seconds=SILENT_AFTER_SECONDS)) for row in rows]


class Standing(StrEnum):
    IN_STEP = "in_step"  # ready, and it holds all that is wanted
    BEHIND = "behind"
    SILENT = "silent"


def folded(session: Session, row: Replica) -> str | None:
    """The adapter that is part of the base's weights there, by its own account."""
    policy = session.get(Policy, row.base_version) if row.base_version else None
    return policy.version if policy is not None and policy.kind == PolicyKind.ADAPTER else None


def standing_of(session: Session) -> list[tuple[Replica, Standing]]:
    """Raises NoBase while nothing can be wanted."""
    wanted = rollout.wanted(session)

    def standing(row: Replica, *, heard_of: bool) -> Standing:
        if not heard_of:
            return Standing.SILENT
        return Standing.IN_STEP if row.ready and wanted.needed(row.base_version) <= set(row.holds) else Standing.BEHIND

    return [(row, standing(row, heard_of=heard_of)) for row, heard_of in replicas(session)]
