"""How an automatic matchup draws here: from what this replica holds, by what the leaderboard knows least.

The choices are read and the strengths fitted now and then, in the background: whoever asks for a comparison waits for
neither. While a candidate is in canary its rollout comes first: the pair that is drawn most is the rollout's.
"""

from __future__ import annotations

import asyncio
import logging

from deploy import draws
from deploy.draws import Pair
from deploy.leaderboard import choices_of, ranked
from deploy.settings import RolloutSettings
from feedback.store import Store
from server.residency import Residency

log = logging.getLogger("kudos.pairing")


class Draws:
    def __init__(self, store: Store, residency: Residency, plan: RolloutSettings) -> None:
        self._store, self._residency, self._plan = store, residency, plan
        self._telling: Pair | None = None

    @property
    def pool(self) -> list[str]:
        """What is drawn from, as far as it is held; empty unless the matchup is automatic."""
        return sorted(set(self._residency.wanted.pool) & self._residency.held)

    def odds(self) -> dict[Pair, float]:
        return draws.odds(self.pool, self._favourite(), self._plan.uniform_pairs)

    def _favourite(self) -> Pair | None:
        wanted = self._residency.wanted
        return self._telling if wanted.candidate is None else (wanted.stable, wanted.candidate)

    async def keep_fresh(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                pool = self.pool
                self._telling = await asyncio.to_thread(self._most_telling, pool) if len(pool) > 2 else None
            except Exception:  # isolates: pairs are drawn alike until the database answers again
                log.exception("the leaderboard could not be read")
            await asyncio.sleep(self._plan.look_seconds)

    def _most_telling(self, pool: list[str]) -> Pair | None:
        with self._store.read() as session:
            choices = choices_of(session)
        found = ranked(choices, also=pool)
        return draws.most_telling(found.fit, found.names, pool)
