"""The rollout's controller inside the server: it looks every few seconds, acts where it may, and says what it saw.

Every replica may do so: `deploy.controller` sees to it that one of them acts.
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
            look = await asyncio.to_thread(controller.look, store, plan)
            _export(look)
            if look is not None and look.acted:
                log.warning(
                    "rollout of %s: %s: %s", look.evidence.candidate, look.decision.verdict, look.decision.reason
                )
                residency.nudge()
        except Exception:  # isolates: supervision must outlive a database that is away
            log.exception("the rollout could not be looked at")
        await asyncio.sleep(plan.look_seconds)


def _export(look: Look | None) -> None:
    if look is None:
        metrics.rollout_effect.clear()
        metrics.rollout_guardrail.clear()
        metrics.rollout_sample_ratio_mismatch.set(0)
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
    for alarm in look.decision.alarms:
        if alarm.name == "sample_ratio":
            metrics.rollout_sample_ratio_mismatch.set(alarm.raised)
