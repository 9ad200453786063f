"""What the replicas say they hold; read here, written by each replica alone."""

from __future__ import annotations

from datetime import timedelta

from sqlmodel import Session, col, select

from feedback.schema import Replica, now

SILENT_AFTER_SECONDS = 30.0


def replicas(session: Session) -> list[tuple[Replica, bool]]:
    """Each replica of the last day, and whether it has been heard of lately."""
    at = now()
    rows = session.exec(
        select(Replica).where(col(Replica.heartbeat_at) > at - timedelta(days=1)).order_by(col(Replica.id))
    ).all()
    return [(row, at - row.heartbeat_at < timedelta(seconds=SILENT_AFTER_SECONDS)) for row in rows]
