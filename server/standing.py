"""What a replica says of itself: to the others and to operators in a row of the database, to Prometheus in metrics."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlmodel import Session

from deploy.rollout import Wanted
from feedback.ledger import Ledger
from feedback.schema import Replica, now
from server import metrics, routing

HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Standing:
    """The columns of its row. base_version: the policy whose base weights the engine holds. holds: the policies that
    it can route to. problems: why it does not serve others, by version."""

    address: str
    ready: bool
    base_version: str
    holds: list[str]
    problems: dict[str, str]


class Announcer:
    """Writes a standing that changed at once, and one that did not as a heartbeat."""

    def __init__(self, started_at: datetime) -> None:
        self._started_at = started_at
        self._announced: Standing | None = None
        self._announced_at = 0.0

    async def announce(self, ledger: Ledger, replica_id: str, standing: Standing) -> None:
        at = time.monotonic()
        if standing == self._announced and at - self._announced_at < HEARTBEAT_SECONDS:
            return
        columns: dict[str, Any] = {**asdict(standing), "started_at": self._started_at, "heartbeat_at": now()}

        def write(session: Session) -> None:
            replica = session.get(Replica, replica_id) or Replica(id=replica_id, address=standing.address)
            for name, value in columns.items():
                setattr(replica, name, value)
            session.add(replica)

        await asyncio.wrap_future(ledger.submit(write))
        self._announced, self._announced_at = standing, at


def export(standing: Standing, wanted: Wanted, *, serving: str, folded: bool, engine_up: bool, home: Path) -> None:
    """Sets this replica's gauges."""
    held = frozenset(standing.holds)
    metrics.engine_up.set(engine_up)
    metrics.policy_info.clear()
    metrics.policy_info.labels(serving, routing.STABLE).set(1)
    share = wanted.share if wanted.candidate in held else 0.0
    if share:
        metrics.policy_info.labels(wanted.candidate, routing.CANARY).set(1)
    metrics.policy_missing.set(len(wanted.needed(standing.base_version) - held))
    metrics.policy_folded.set(folded)
    metrics.rollout_share_ratio.labels(routing.STABLE).set(1 - share)
    metrics.rollout_share_ratio.labels(routing.CANARY).set(share)
    disk = shutil.disk_usage(home)
    metrics.disk_free_bytes.set(disk.free)
    metrics.disk_size_bytes.set(disk.free + disk.used)
