"""Rollout events name their action and form a chain of hashes, so that a row that is changed by hand shows."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"
branch_labels = None
depends_on = None

EVENT = sa.table(
    "rollout_event",
    sa.column("id", sa.Integer()),
    sa.column("rollout_id", sa.Integer()),
    sa.column("action", sa.String()),
    sa.column("from_state", sa.String()),
    sa.column("to_state", sa.String()),
    sa.column("share", sa.Float()),
    sa.column("actor", sa.String()),
    sa.column("reason", sa.String()),
    sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("hash", sa.String()),
)


def upgrade() -> None:
    for name in ("action", "hash"):
        op.add_column("rollout_event", sa.Column(name, sa.String(), nullable=False, server_default=""))
    connection, previous = op.get_bind(), "0" * 64
    for row in connection.execute(sa.select(EVENT).order_by(EVENT.c.id)).mappings().all():
        action = action_of(row)
        previous = event_hash(previous, {**row, "action": action})
        connection.execute(EVENT.update().where(EVENT.c.id == row["id"]).values(action=action, hash=previous))


def action_of(row: Any) -> str:
    if row["from_state"] is None:
        return "start"
    return {"canary": "advance", "promoted": "promote", "rolled_back": "rollback"}[row["to_state"]]


def event_hash(previous: str, row: dict[str, Any]) -> str:
    """Frozen here as deploy/audit.py had it when the chain began."""
    at: datetime = row["created_at"]
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)  # SQLite forgets the zone
    names = ("rollout_id", "action", "from_state", "to_state", "share", "actor", "reason")
    content = {name: row[name] for name in names} | {"created_at": at.isoformat(timespec="microseconds")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}{canonical}".encode()).hexdigest()
