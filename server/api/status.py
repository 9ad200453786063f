"""For the page and for machines: what answers, how many votes count, what the trainer does; metrics and health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import func
from sqlmodel import Session, col, select
from starlette.responses import JSONResponse, PlainTextResponse, Response

from feedback.schema import TrainingRun
from feedback.verdicts import effective_vote
from server.identity import Scope
from server.metrics import CONTENT_TYPE
from server.openapi import Responses
from server.scrape import scrape
from server.services import services_of
from server.shapes import operators as shapes

router = APIRouter()

_NOT_READY: Responses = {
    503: {"model": shapes.Ready, "description": "Not now: starting, draining, or without a policy"}
}


@router.get("/v1/status", response_model=shapes.Status, tags=["me"])
async def status(request: Request) -> dict[str, Any]:
    """For the page: what answers this user, how many votes count, and what the trainer does."""
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    version = services.residency.assign(identity.user_id).version
    known = services.residency.wanted.policies.get(version)

    def read(session: Session) -> dict[str, Any]:
        mine = session.execute(
            select(func.count()).select_from(effective_vote).where(effective_vote.c.user_id == identity.user_id)
        ).scalar_one()
        run = session.exec(select(TrainingRun).order_by(col(TrainingRun.started_at).desc()).limit(1)).first()
        trainer = None
        if run is not None:
            trainer = {
                "run_id": run.id,
                "state": run.state,
                "stage": run.stage,
                "progress": run.progress,
                "message": run.message,
                "updated_at": run.updated_at,
            }
        return {"mine": mine, "trainer": trainer}

    found = await services.read(read)
    return {
        "policy": {"version": version, "number": known.number if known else number_of(version)},
        "votes": {"total": await services.vote_total.get(), "mine": found["mine"]},
        "trainer": found["trainer"],
        "ready": services.residency.ready and not services.draining,
    }


def number_of(version: str) -> int:
    """v<number>-<digest>: versions carry their number."""
    return int(version.partition("-")[0].removeprefix("v"))


@router.get(
    "/metrics",
    tags=["metrics"],
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "kudos_streams_active 3.0\n"}}}},
)
async def prometheus(request: Request) -> Response:
    """The server's and the engine's metrics, as Prometheus scrapes them. They are listed in docs/operations.md."""
    services = services_of(request)
    await services.identity(request, Scope.METRICS)
    return Response(await scrape(services), media_type=CONTENT_TYPE)


@router.get("/health/live", response_model=shapes.Live, tags=["health"])
async def live() -> dict[str, bool]:
    """Whether the process answers at all: one that does not should be started again."""
    return {"live": True}


@router.get("/health/ready", response_model=shapes.Ready, tags=["health"], responses=_NOT_READY)
async def ready(request: Request) -> JSONResponse:
    """Whether it takes requests now. 503 while it starts, swaps badly or drains, with a body of the same shape."""
    services = services_of(request)
    ok = services.residency.ready and not services.draining
    body = {"ready": ok, "draining": services.draining, "serving": services.residency.serving if ok else None}
    return JSONResponse(body, status_code=200 if ok else 503)
