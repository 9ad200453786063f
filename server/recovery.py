"""Replies of servers that died and never came back, as a replaced container does: somebody must say that they ended.

A server that starts again says it of its own (`serve`); here every server says it of those that have been silent for
long, since nobody can vote on a reply that is being written for ever.
"""

from __future__ import annotations

import asyncio
import logging

from feedback.errors import StorageError
from feedback.replies import recover_abandoned
from server.services import Services

log = logging.getLogger("kudos.recovery")

EVERY_SECONDS = 60.0


async def keep_recovering(services: Services, every_seconds: float = EVERY_SECONDS) -> None:
    """Until it is cancelled."""
    own, reached = services.residency.replica_id, False
    while True:
        await asyncio.sleep(every_seconds)
        try:
            # Not at once after the database was away: those that live have had no chance to say so.
            found = await services.write(lambda session: recover_abandoned(session, own) if reached else 0)  # noqa: B023
            reached = True
        except StorageError:
            reached = False
            continue
        if found:
            log.warning("%s replies of servers that are gone were never ended; they are incomplete now", found)
