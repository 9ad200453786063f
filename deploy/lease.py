"""Leases with fencing tokens: at most one trainer publishes, even when another one wakes from a long pause.

A lease alone cannot stop a process that was suspended past its expiry and goes on writing. So each holder gets a
fence, larger than any before, and `check_fence`, called in the transaction that publishes, refuses an old one.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from deploy.errors import LeaseHeld, LeaseLost
from feedback.schema import Lease, now
from feedback.store import Store


def acquire(store: Store, name: str, holder: str, ttl_seconds: float) -> Lease:
    """Raises LeaseHeld while somebody holds it. `holder` names a process: a restarted one is somebody else."""
    try:
        with store.write() as session:
            at = now()
            row = session.get(Lease, name, with_for_update=True)
            if row is None:
                row = Lease(name=name, holder=holder, fence=1, expires_at=_expiry(at, ttl_seconds))
            elif row.expires_at > at:
                raise LeaseHeld(f"{row.holder} holds the lease {name!r} until {row.expires_at:%H:%M:%S} UTC")
            else:
                row.holder, row.fence, row.expires_at = holder, row.fence + 1, _expiry(at, ttl_seconds)
            session.add(row)
            session.flush()
            return _copy(row)
    except IntegrityError as error:  # PostgreSQL: two processes found no row, and the other one was first
        raise LeaseHeld(f"somebody else has just taken the lease {name!r}") from error


def renew(store: Store, lease: Lease, ttl_seconds: float) -> Lease:
    """Raises LeaseLost when it ran out, even if nobody took it: work since then was not covered."""
    with store.write() as session:
        row = _held(session, lease)
        row.expires_at = _expiry(now(), ttl_seconds)
        session.add(row)
        session.flush()
        return _copy(row)


def release(store: Store, lease: Lease) -> None:
    """The row stays, so that fences keep growing. A lease that was lost is no longer ours to release."""
    with store.write() as session:
        row = session.get(Lease, lease.name, with_for_update=True)
        if row is not None and row.fence == lease.fence:
            row.expires_at = now()
            session.add(row)


def check_fence(session: Session, lease: Lease) -> None:
    """In the transaction that publishes: raises LeaseLost unless the lease is still held."""
    _held(session, lease)


def _held(session: Session, lease: Lease) -> Lease:
    row = session.get(Lease, lease.name, with_for_update=True, populate_existing=True)
    if row is None or row.fence != lease.fence or row.holder != lease.holder:
        now_held_by = "nobody" if row is None else f"{row.holder} with fence {row.fence}"
        raise LeaseLost(f"the lease {lease.name!r} of {lease.holder} (fence {lease.fence}) went to {now_held_by}")
    if row.expires_at <= now():
        raise LeaseLost(f"the lease {lease.name!r} of {lease.holder} ran out at {row.expires_at:%H:%M:%S} UTC")
    return row


def _expiry(at: datetime, ttl_seconds: float) -> datetime:
    return at + timedelta(seconds=ttl_seconds)


def _copy(row: Lease) -> Lease:
    return Lease(name=row.name, holder=row.holder, fence=row.fence, expires_at=row.expires_at)
