"""Tickets: a link that a browser follows carries no key, so it carries leave to read one path for some minutes.

A ticket is signed with what the database holds of its key. So every server of a deployment takes it, and it is void
as soon as the key is revoked.
"""

from __future__ import annotations

import hashlib
import hmac
import time

from sqlmodel import Session

from feedback.schema import ApiKey

TICKET = "ticket"  # the parameter of the address
SECONDS = 600


def ticket(session: Session, key_id: str, path: str) -> str:
    key = session.get_one(ApiKey, key_id)
    until = int(time.time()) + SECONDS
    return f"{key.id}.{until}.{_signature(key, path, until)}"


def holder(session: Session, given: str, path: str) -> ApiKey | None:
    """The key that a ticket for `path` was made with; None where the ticket is not good, or not any more."""
    key_id, _, rest = given.partition(".")
    until, _, signature = rest.partition(".")
    key = session.get(ApiKey, key_id)
    if key is None or key.revoked_at is not None or not until.isdecimal() or int(until) < time.time():
        return None
    return key if hmac.compare_digest(signature.encode(), _signature(key, path, int(until)).encode()) else None


def _signature(key: ApiKey, path: str, until: int) -> str:
    return hmac.new(key.sha256.encode(), f"{path}\0{until}".encode(), hashlib.sha256).hexdigest()
