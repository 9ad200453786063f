"""For operators: a rollout's steps, what the evidence says of it, and who did what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sqlmodel import Session

from deploy import controller, replicas, rollout
from deploy.audit import audit
from deploy.observed import SHADOW, Evidence, Served
from deploy.replicas import Standing
from deploy.rollout import Plan
from deploy.wording import sentence_of
from feedback.schema import Rollout
from server.errors import ApiError
from server.identity import Scope
from server.openapi import Responses, body_of
from server.services import Services, services_of
from server.shapes import Body, shown
from server.shapes import rollouts as shapes
from server.wire import read_optional

router = APIRouter(prefix="/v1/rollouts", tags=["operators"])

_REFUSED: Responses = {409: {"description": "The rollout's state, or the gate, does not allow it"}}
_DONE_OR_PLANNED: Responses = {
    200: {
        "description": "The rollout as it is now; with `dry_run` what would be done to it",
        "content": {"application/json": {"example": shapes.EXAMPLE_PLAN}},
    }
}
_NO_ROLLOUT: Responses = {404: {"description": "There is no rollout"}}


class ReasonBody(Body):
    model_config = shown({"reason": "looks well"})
    reason: str = ""
    dry_run: bool = False
    """Only say what would be done."""


class StartBody(ReasonBody):
    model_config = shown({"version": "v1-0a1b2c3d", "share": 0.05, "reason": "more friendly"})
    version: str
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    force: bool = False
    shadow: bool = False
    """Answers some prompts in the background first, and meets nobody."""


class StepBody(ReasonBody):
    model_config = shown({"share": 0.25, "reason": "looks well"})
    share: Annotated[float, Field(gt=0, le=1)] | None = None


def _step(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a step: all answer with the rollout, and need no body."""
    return {
        "response_model": shapes.Rollout | shapes.RolloutPlan,
        "openapi_extra": body_of(kind, required=False),
        "responses": _DONE_OR_PLANNED | _REFUSED | _NO_ROLLOUT,
    }


@router.post(
    "",
    response_model=shapes.Rollout | shapes.RolloutPlan,
    openapi_extra=body_of(StartBody),
    responses=_DONE_OR_PLANNED | _REFUSED | {404: {"description": "There is no such policy"}},
)
async def start_rollout(request: Request) -> dict[str, Any]:
    """Lets a policy meet a share of users, or nobody while it answers in shadow.

    `force` passes over the gate's verdict, and is recorded.
    """
    body = await _asked(request, StartBody)
    how: dict[str, Any] = {
        "reason": body.reason,
        "force": body.force,
        "shadow": body.shadow,
        "steps": services_of(request).plan.steps,
    }
    return await _decide(
        request,
        body,
        lambda session: rollout.plan_start(session, body.version, body.share, **how),
        lambda session, actor: rollout.start(session, body.version, body.share, actor, **how),
    )


@router.get("/current", response_model=shapes.CurrentRollout, responses=_NO_ROLLOUT)
async def current_rollout(request: Request) -> dict[str, Any]:
    """The rollout, what the evidence says now, who did what, and what the replicas hold."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return await _current(services)


@router.get("/events", response_model=shapes.RolloutEvents)
async def rollout_events(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.", examples=[20])] = 200
) -> dict[str, Any]:
    """The newest transitions of all rollouts, and whether the chain of all of them is whole."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> dict[str, Any]:
        found, chain = rollout.events(session, limit), audit(session)
        return {
            "object": "list",
            "data": [{**event.model_dump(), "candidate_version": of.candidate_version} for event, of in found],
            # `broken`: the first event that is not what was written, or not where it was written.
            "chain": {"events": chain.events, "head": chain.head, "broken": chain.broken and chain.broken.id},
        }

    return await services.read(read)


@router.post("/current/advance", **_step(StepBody))
async def advance(request: Request) -> dict[str, Any]:
    """The next share of users, or the one that is named."""
    body = await _asked(request, StepBody)
    steps = services_of(request).plan.steps
    return await _decide(
        request,
        body,
        lambda session: rollout.plan_advance(session, body.share, steps),
        lambda session, actor: rollout.advance(session, actor, body.reason, share=body.share, steps=steps),
    )


@router.post("/current/hold", **_step(ReasonBody))
async def hold(request: Request) -> dict[str, Any]:
    """The controller waits until the rollout is resumed."""
    body = await _asked(request, ReasonBody)
    return await _decide(
        request, body, rollout.plan_hold, lambda session, actor: rollout.hold(session, actor, body.reason)
    )


@router.post("/current/resume", **_step(ReasonBody))
async def resume(request: Request) -> dict[str, Any]:
    """The controller looks at the rollout again."""
    body = await _asked(request, ReasonBody)
    return await _decide(
        request, body, rollout.plan_resume, lambda session, actor: rollout.resume(session, actor, body.reason)
    )


@router.post("/current/promote", **_step(StepBody))
async def promote(request: Request) -> dict[str, Any]:
    """The candidate serves everyone, and is what later rollouts return to."""
    body = await _asked(request, StepBody)
    return await _decide(
        request, body, rollout.plan_promote, lambda session, actor: rollout.promote(session, actor, body.reason)
    )


@router.post("/current/rollback", **_step(StepBody))
async def rollback(request: Request) -> dict[str, Any]:
    """Everyone gets the stable policy again."""
    body = await _asked(request, StepBody)
    return await _decide(
        request, body, rollout.plan_rollback, lambda session, actor: rollout.rollback(session, actor, body.reason)
    )


async def _asked(request: Request, kind: type[ReasonBody]) -> Any:
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return await read_optional(request, kind, services.settings.max_body_bytes)


async def _decide(
    request: Request, body: ReasonBody, plan: Callable[[Session], Plan], act: Callable[[Session, str], Rollout]
) -> dict[str, Any]:
    """Does it, or with `dry_run` says what would be done; both refuse the same with the same words."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    if body.dry_run:
        planned = await services.read(plan)
        return {"object": "rollout.plan", **asdict(planned), "sentence": sentence_of(planned)}
    changed = await services.write(lambda session: _rollout(act(session, identity.actor)))
    services.residency.nudge()
    return changed


async def _current(services: Services) -> dict[str, Any]:
    def read(session: Session) -> dict[str, Any]:
        row = rollout.current(session)
        if row is None:
            raise ApiError(404, "there is no rollout: the base serves everyone", code="no_rollout")
        look = controller.assess(session, services.plan)
        return {
            **_rollout(row),
            "held": rollout.is_held(session, row),
            "step_began": rollout.step_began(session, row),
            "decision": look.decision.as_dict() if look else None,  # what the evidence says now
            "evidence": _evidence(look.evidence) if look else None,
            "plan": services.plan.model_dump(exclude={"watch", "look_seconds"}),
            "events": [
                event.model_dump(exclude={"rollout_id"}) for event, of in rollout.events(session) if of.id == row.id
            ],
            "replicas": [
                {
                    **replica.model_dump(),
                    "folded": replicas.folded(session, replica),
                    "heard_of": standing is not Standing.SILENT,
                    "standing": standing,
                }
                for replica, standing in replicas.standing_of(session)
            ],
        }

    return await services.read(read)


def _evidence(found: Evidence) -> dict[str, Any]:
    """How much there is to go by, by step and arm."""
    steps: dict[tuple[float, bool], list[Served]] = {}
    for row in found.served:
        steps.setdefault((row.share, row.candidate), []).append(row)
    return {
        "minutes": found.minutes,
        "step_votes": found.step_votes,
        "comparing_users": len(found.compared),
        "served": [
            {
                "share": share,
                "arm": "shadow" if share == SHADOW and candidate else "canary" if candidate else "stable",
                "users": len(rows),
                "replies": sum(row.manner.replies for row in rows),
                "failed": sum(row.failed for row in rows),
                "up": sum(row.up for row in rows),
                "down": sum(row.down for row in rows),
            }
            for (share, candidate), rows in sorted(steps.items())
        ],
    }


def _rollout(row: Rollout) -> dict[str, Any]:
    return {"object": "rollout", **row.model_dump(exclude={"salt"})}  # who knows the salt can choose an arm
