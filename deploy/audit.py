"""The rollout's events as a chain: each row holds the hash of its content and of the row before it.

A row that is changed, removed, put in or moved by hand breaks the chain at that row. Removing the newest rows, or
writing the whole chain anew, cannot be seen from inside: keep the newest hash elsewhere, and compare it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC

from sqlmodel import Session, col, select

from feedback.schema import RolloutEvent

GENESIS = "0" * 64


@dataclass(frozen=True)
class Audit:
    events: int
    head: str  # hash of the newest event
    broken: RolloutEvent | None  # the first whose hash is not that of its content and of the hash before it


def event_hash(previous: str, event: RolloutEvent) -> str:
    """SHA-256 over the previous event's hash and the event's content as canonical JSON."""
    content = {
        "rollout_id": event.rollout_id,
        "action": str(event.action),
        "from_state": None if event.from_state is None else str(event.from_state),
        "to_state": str(event.to_state),
        "share": float(event.share),
        "actor": event.actor,
        "reason": event.reason,
        "created_at": event.created_at.astimezone(UTC).isoformat(timespec="microseconds"),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}{canonical}".encode()).hexdigest()


def head(session: Session) -> str:
    newest = session.exec(select(RolloutEvent.hash).order_by(col(RolloutEvent.id).desc()).limit(1)).first()
    return newest or GENESIS


def audit(session: Session) -> Audit:
    """Reads every event, oldest first."""
    previous, count = GENESIS, 0
    for event in session.exec(select(RolloutEvent).order_by(col(RolloutEvent.id))):
        count += 1
        if event.hash != event_hash(previous, event):
            return Audit(count, previous, event)
        previous = event.hash
    return Audit(count, previous, None)
