"""One decision at a time about policies and rollouts, on either database.

On SQLite every write transaction is alone already. On PostgreSQL two operators could both see that no rollout is
running; a lock that lasts until the transaction ends makes the second one look again after the first has committed.
"""

from sqlalchemy import text
from sqlmodel import Session

_KEY = 0x6B75646F73  # any constant that nobody else in this database uses


def alone(session: Session) -> None:
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})
