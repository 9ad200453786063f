"""What is left of a user who was erased: that they were, and when, under a digest of their id.

The digest lets an id that comes back be recognised, and lineage say which policies learned from this user, without
naming anybody: see docs/decisions/0010-a-tombstone-is-a-digest.md. Erasing itself is in `feedback.privacy`.
"""

import hashlib
from collections.abc import Iterable

from sqlalchemy import select

from feedback.schema import User
from feedback.statements import Executor, columns

_PAGE = 500  # ids in one statement


def tombstone_id(user_id: str) -> str:
    """The id under which an erased user's row, and the lineage of their votes, stay."""
    return f"erased-{hashlib.sha256(user_id.encode()).hexdigest()}"


def erased_among(session: Executor, user_ids: Iterable[str]) -> set[str]:
    """Those of the ids whose user was erased."""
    by_tombstone = {tombstone_id(user_id): user_id for user_id in user_ids}
    names, user = list(by_tombstone), columns(User).id
    return {
        by_tombstone[found]
        for start in range(0, len(names), _PAGE)
        for found in session.execute(select(user).where(user.in_(names[start : start + _PAGE]))).scalars()
    }
