"""For operators: training runs, their curves and reports, and the wish for another one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlmodel import Session, col, select
from starlette.responses import FileResponse, HTMLResponse

from feedback.schema import TrainingRun
from server import tickets
from server.errors import ApiError
from server.identity import Scope
from server.services import services_of
from server.shapes import operators as shapes

router = APIRouter(prefix="/v1/training/runs", tags=["operators"])

TRAINING_REQUEST = "train.request"  # in the home folder; the trainer takes it away when it starts
# A report quotes what people wrote. It may show itself, and do nothing else, not even as its own origin.
_REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@router.get("", response_model=shapes.Runs)
async def training_runs(
    request: Request, limit: Annotated[int, Query(ge=1, le=500, description="At most so many.", examples=[20])] = 100
) -> dict[str, Any]:
    """Newest first, without their settings and measures: `GET /v1/training/runs/{id}` has those."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> list[dict[str, Any]]:
        rows = session.exec(select(TrainingRun).order_by(col(TrainingRun.started_at).desc()).limit(limit))
        return [row.model_dump(exclude={"config", "metrics"}) for row in rows]

    return {"object": "list", "data": await services.read(read)}


@router.post("", status_code=202, response_model=shapes.RunRequested)
async def request_training_run(request: Request) -> dict[str, Any]:
    """Asks for a run now, however few votes are new. The trainer that runs beside the server looks for the file."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    path = services.settings.home / TRAINING_REQUEST
    await asyncio.to_thread(path.write_text, f"{identity.actor}\n")
    return {"object": "training.request", "requested": True}


@router.get("/{run_id}", response_model=shapes.Run)
async def training_run(request: Request, run_id: str) -> dict[str, Any]:
    """All of one run. `report_url` opens its report in a browser, for some minutes, without a key."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> dict[str, Any]:
        row = _run(session, run_id)
        path, url = f"{router.prefix}/{row.id}/report", None
        if row.report_path and identity.key_id:
            url = f"{path}?{tickets.TICKET}={tickets.ticket(session, identity.key_id, path)}"
        return {"object": "training.run", **row.model_dump(), "report_url": url}

    return await services.read(read)


@router.get(
    "/{run_id}/report",
    response_class=HTMLResponse,
    responses={200: {"content": {"text/html": {"example": "<!doctype html><title>v1-0a1b2c3d</title>"}}}},
)
async def report(
    request: Request,
    run_id: str,
    ticket: Annotated[str | None, Query(description="Of a `report_url`, in place of a key.")] = None,
) -> FileResponse:
    """The run's report, with a key in the header or a ticket in the address. Where it is shown, nothing in it runs."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    stored = await services.read(lambda session: _run(session, run_id).report_path)
    home = services.settings.home.resolve()
    path = (home / stored).resolve() if stored else None
    if path is None or not path.is_relative_to(home / "runs") or not await asyncio.to_thread(Path.is_file, path):
        raise ApiError(404, f"the run {run_id} has no report on this machine", code="not_found")
    return FileResponse(
        path, media_type="text/html", headers={"content-security-policy": _REPORT_POLICY, "cache-control": "no-store"}
    )


def _run(session: Session, run_id: str) -> TrainingRun:
    row = session.get(TrainingRun, run_id)
    if row is None:
        raise ApiError(404, f"there is no run {run_id}", code="not_found")
    return row
