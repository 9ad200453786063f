"""What is looked up when somebody scrapes, and not while anybody chats: votes, training runs, the database's size."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from deploy.replicas import Standing, standing_of
from feedback.errors import StorageError
from feedback.health import database_bytes
from feedback.schema import RunState, TrainingRun
from feedback.verdicts import count_votes
from server import metrics
from server.services import Services

log = logging.getLogger("kudos.metrics")


async def scrape(services: Services) -> bytes:
    """Every metric in Prometheus' text format. Without the database, what it says stays as it was."""
    try:
        await services.read(look_up)
    except StorageError as error:
        log.warning("metrics that come from the database are not up to date: %s", error)
    return metrics.scrape()


def look_up(session: Session) -> None:
    metrics.effective_votes.set(count_votes(session))
    metrics.database_bytes.set(database_bytes(session))
    standings = Counter(standing for _, standing in standing_of(session))
    for standing in Standing:
        metrics.replicas.labels(standing.value).set(standings[standing])
    states: dict[str, int] = dict(
        session.execute(select(TrainingRun.state, func.count()).group_by(TrainingRun.state)).tuples().all()
    )
    for known in RunState:
        metrics.training_runs.labels(known.value).set(states.get(known.value, 0))
    newest = session.exec(
        select(TrainingRun.state, TrainingRun.stage, TrainingRun.progress)
        .order_by(col(TrainingRun.started_at).desc())
        .limit(1)
    ).first()
    state, stage, progress = newest or ("", "", 0.0)
    metrics.training_running.set(state == RunState.RUNNING)
    metrics.training_progress_ratio.set(progress)
    for each in metrics.STAGES:
        metrics.training_stage.labels(each).set(each == stage)
    _last_success(session)


def _last_success(session: Session) -> None:
    run = session.exec(
        select(TrainingRun)
        .where(TrainingRun.state == RunState.SUCCEEDED, col(TrainingRun.policy_version).is_not(None))
        .order_by(col(TrainingRun.finished_at).desc())
        .limit(1)
    ).first()
    metrics.training_votes_waiting.set(count_votes(session, after_id=run.last_vote_id if run else 0))
    if run is None or run.finished_at is None:
        return
    metrics.training_last_success_timestamp_seconds.set(run.finished_at.timestamp())
    sections: dict[str, Any] = {
        "": {"votes": run.votes},
        "samples": run.metrics.get("samples") or {},
        "evaluation": run.metrics.get("evaluation") or {},
        "ppo": (run.metrics.get("ppo") or [{}])[-1],
    }
    for (section, name), gauge in metrics.training_measures.items():
        value = sections[section].get(name)
        gauge.set(math.nan if value is None else value)
