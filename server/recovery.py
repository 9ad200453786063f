"""Replies of servers that died and never came back, as a replaced container does: somebody must say that they ended.

A server that starts again says it of its own (`serve`); here every server says it of those that have been silent for
long, since nobody can vote on a reply that is being written for ever.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from sqlmodel import Session

from feedback.errors import StorageError
from feedback.replies import recover_abandoned
from server.services import Services

log = logging.getLogger("kudos.recovery")

EVERY_SECONDS = 60.0


async def keep_recovering(services: Services, every_seconds: float = EVERY_SECONDS) -> None:
    """Until it is cancelled."""
    reached = False
    while True:
        await asyncio.sleep(every_seconds)
        own = services.residency.replica_id  # known once the server listens
        # Not at once after the database was away: those that live have had no chance to say so.
        recover = partial(recover_abandoned, replica_id=own) if reached else _nothing
        try:
            found = await services.write(recover)
        except StorageError:
            reached = False
            continue
        reached = True
        if found:
            log.warning("%s replies of servers that are gone were never ended; they are incomplete now", found)


def _nothing(session: Session) -> int:
    return 0
