"""The rollout's controller inside the server: it looks every few seconds, acts where it may, and says what it saw.

Every replica may do so: `deploy.controller` sees to it that one of them acts. Where another process does
(`KUDOS_ROLLOUT_WATCH=false`) it only looks, and says what it saw all the same.
"""

from __future__ import annotations

import asyncio
import logging
import math

from deploy import controller
from deploy.controller import Look
from deploy.settings import RolloutSettings
from feedback.store import Store
from server import metrics
from server.residency import Residency

log = logging.getLogger("kudos.rollout")


async def supervise(store: Store, residency: Residency, plan: RolloutSettings) -> None:
    """Until it is cancelled."""
    while True:
        try:
            look, mismatched = await asyncio.to_thread(_look, store, plan)
            _export(look)
            metrics.rollout_sample_ratio_mismatch.set(mismatched)
            if look is not None and look.acted:
                log.warning(
                    "rollout of %s: %s: %s", look.evidence.candidate, look.decision.verdict, look.decision.reason
                )
                residency.nudge()
        except Exception:  # isolates: supervision must outlive a database that is away
            log.exception("the rollout could not be looked at")
        await asyncio.sleep(plan.look_seconds)


def _look(store: Store, plan: RolloutSettings) -> tuple[Look | None, bool]:
    """And whether the arms have, or had when it went back, not the users that they should have."""
    found = controller.look(store, plan, dry_run=not plan.watch)
    if found is not None and not found.acted:
        return found, any(alarm.raised for alarm in found.decision.alarms if alarm.name == "sample_ratio")
    with store.read() as session:
        return found, controller.went_back_mismatched(session)


def _export(look: Look | None) -> None:
    if look is None:
        metrics.rollout_effect.clear()
        metrics.rollout_guardrail.clear()
        return
    metrics.rollout_decisions_total.labels(look.decision.verdict.value).inc()
    for measure in look.decision.measures:
        for bound in ("lower", "estimate", "upper"):
            value = getattr(measure, bound)
            effect = math.nan if value is None else value - measure.neutral
            metrics.rollout_effect.labels(measure.name, bound).set(effect)
    for guardrail in look.decision.guardrails:
        for bound in ("lower", "estimate", "upper", "lowest", "highest"):
            value = getattr(guardrail, bound)
            metrics.rollout_guardrail.labels(guardrail.name, bound).set(math.nan if value is None else value)
