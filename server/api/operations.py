"""For operators: policies with their lines, rollouts, the matchup, and who beats whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from deploy import controller, policies, replicas, rollout
from deploy.audit import audit
from deploy.rollout import Plan
from deploy.wording import sentence_of
from feedback.schema import Matchup, Policy, Rollout
from server.errors import ApiError
from server.identity import Scope
from server.leaderboard import standings
from server.openapi import Responses, body_of
from server.services import Services, services_of
from server.shapes import operators as shapes
from server.shapes import shown
from server.wire import parse, read_json

router = APIRouter(prefix="/v1", tags=["operators"])

_REFUSED: Responses = {409: {"description": "The rollout's state, or the gate, does not allow it"}}
_DONE_OR_PLANNED: Responses = {
    200: {
        "description": "The rollout as it is now; with `dry_run` what would be done to it",
        "content": {"application/json": {"example": shapes.EXAMPLE_PLAN}},
    }
}
_NO_ROLLOUT: Responses = {404: {"description": "There is no rollout"}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ReasonBody(_Body):
    model_config = shown({"reason": "looks well"})
    reason: str = ""
    dry_run: bool = False
    """Only say what would be done."""


class StartBody(ReasonBody):
    model_config = shown({"version": "v1-0a1b2c3d", "share": 0.05, "reason": "more friendly"})
    version: str
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    force: bool = False


class StepBody(ReasonBody):
    model_config = shown({"share": 0.25, "reason": "looks well"})
    share: Annotated[float, Field(gt=0, le=1)] | None = None


class MatchupBody(_Body):
    model_config = shown({"first_version": "v1-0a1b2c3d", "second_version": "v0-4e5f6a7b"})
    first_version: str | None = None
    second_version: str | None = None


def _step(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a step: all answer with the rollout, and need no body."""
    return {
        "response_model": shapes.Rollout | shapes.RolloutPlan,
        "openapi_extra": body_of(kind, required=False),
        "responses": _DONE_OR_PLANNED | _REFUSED | _NO_ROLLOUT,
    }


@router.get("/policies", response_model=shapes.Policies)
async def all_policies(request: Request) -> dict[str, Any]:
    """Every policy, oldest first, and what this replica should hold and does."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    rows = await services.read(lambda session: [_policy(row) for row in policies.everything(session)])
    return {"object": "list", "data": rows, "wanted": _wanted(services)}


@router.get("/policies/{version}", response_model=shapes.PolicyWithLineage)
async def one_policy(request: Request, version: str) -> dict[str, Any]:
    """A policy with its line both ways: the votes and the run that made it, and the replies that it wrote."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> dict[str, Any]:
        line = policies.lineage(session, version)
        return {
            **_policy(line.policy),
            "lineage": {
                "ancestors": [each.version for each in line.ancestors],
                "children": [each.version for each in line.children],
                "run_id": line.run.id if line.run else None,
                "reward_model_id": line.reward_model.id if line.reward_model else None,
                "samples": [{"kind": s.kind, "split": s.split, "samples": s.samples} for s in line.samples],
                "vote_ids": line.vote_ids,
                "voters": line.voters,
                "replies": line.replies,
            },
        }

    return await services.read(read)


@router.post(
    "/rollouts",
    response_model=shapes.Rollout | shapes.RolloutPlan,
    openapi_extra=body_of(StartBody),
    responses=_DONE_OR_PLANNED | _REFUSED | {404: {"description": "There is no such policy"}},
)
async def start_rollout(request: Request) -> dict[str, Any]:
    """Lets a policy meet a share of users. `force` passes over the gate's verdict, and is recorded."""
    body = await _asked(request, StartBody)
    return await _decide(
        request,
        body,
        lambda session: rollout.plan_start(session, body.version, body.share, reason=body.reason, force=body.force),
        lambda session, actor: rollout.start(
            session, body.version, body.share, actor, reason=body.reason, force=body.force
        ),
    )


@router.get("/rollouts/current", response_model=shapes.CurrentRollout, responses=_NO_ROLLOUT)
async def current_rollout(request: Request) -> dict[str, Any]:
    """The rollout, what the evidence says now, who did what, and what the replicas hold."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return await _current(services)


@router.get("/rollouts/events", response_model=shapes.RolloutEvents)
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


@router.post("/rollouts/current/advance", **_step(StepBody))
async def advance(request: Request) -> dict[str, Any]:
    """The next share of users, or the one that is named."""
    body = await _asked(request, StepBody)
    return await _decide(
        request,
        body,
        lambda session: rollout.plan_advance(session, body.share),
        lambda session, actor: rollout.advance(session, actor, body.reason, share=body.share),
    )


@router.post("/rollouts/current/hold", **_step(ReasonBody))
async def hold(request: Request) -> dict[str, Any]:
    """The controller waits until the rollout is resumed."""
    body = await _asked(request, ReasonBody)
    return await _decide(
        request, body, rollout.plan_hold, lambda session, actor: rollout.hold(session, actor, body.reason)
    )


@router.post("/rollouts/current/resume", **_step(ReasonBody))
async def resume(request: Request) -> dict[str, Any]:
    """The controller looks at the rollout again."""
    body = await _asked(request, ReasonBody)
    return await _decide(
        request, body, rollout.plan_resume, lambda session, actor: rollout.resume(session, actor, body.reason)
    )


@router.post("/rollouts/current/promote", **_step(StepBody))
async def promote(request: Request) -> dict[str, Any]:
    """The candidate serves everyone, and is what later rollouts return to."""
    body = await _asked(request, StepBody)
    return await _decide(
        request, body, rollout.plan_promote, lambda session, actor: rollout.promote(session, actor, body.reason)
    )


@router.post("/rollouts/current/rollback", **_step(StepBody))
async def rollback(request: Request) -> dict[str, Any]:
    """Everyone gets the stable policy again."""
    body = await _asked(request, StepBody)
    return await _decide(
        request, body, rollout.plan_rollback, lambda session, actor: rollout.rollback(session, actor, body.reason)
    )


@router.get("/matchup", response_model=shapes.Matchup)
async def get_matchup(request: Request) -> dict[str, Any]:
    """Which two policies comparisons draw from; nulls: the serving one, against itself."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> dict[str, Any]:
        row = session.exec(select(Matchup).order_by(col(Matchup.id).desc()).limit(1)).first()
        return _matchup(services, row)

    return await services.read(read)


@router.put(
    "/matchup",
    response_model=shapes.Matchup,
    openapi_extra=body_of(MatchupBody, required=False),
    responses=_REFUSED | {404: {"description": "There is no such policy"}},
)
async def put_matchup(request: Request) -> dict[str, Any]:
    """Sets the two policies that comparisons draw from."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    body = await _asked(request, MatchupBody)
    await services.write(
        lambda session: rollout.set_matchup(session, body.first_version, body.second_version, identity.actor)
    )
    services.residency.nudge()
    return await get_matchup(request)


@router.get("/leaderboard", response_model=shapes.Standings)
async def leaderboard(request: Request) -> dict[str, Any]:
    """Who beats whom: each pair of policies with its choices, most judged first."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return {"object": "list", "data": await services.read(standings)}


async def _asked(request: Request, kind: type[Any]) -> Any:
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return parse(kind, {})
    return parse(kind, await read_json(request, services.settings.max_body_bytes))


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
            "plan": services.plan.model_dump(),
            "decision": look.decision.as_dict() if look else None,  # what the evidence says now
            "events": [
                event.model_dump(exclude={"rollout_id"}) for event, of in rollout.events(session) if of.id == row.id
            ],
            "replicas": [{**replica.model_dump(), "heard_of": heard} for replica, heard in replicas.replicas(session)],
        }

    return await services.read(read)


def _rollout(row: Rollout) -> dict[str, Any]:
    return {"object": "rollout", **row.model_dump(exclude={"salt"})}  # who knows the salt can choose an arm


def _policy(row: Policy) -> dict[str, Any]:
    return {"object": "policy", **row.model_dump(exclude={"path"})}


def _wanted(services: Services) -> dict[str, Any]:
    wanted = services.residency.wanted
    return {
        "stable": wanted.stable,
        "candidate": wanted.candidate,
        "share": wanted.share,
        "base": wanted.base,
        "matchup": wanted.matchup,
        "serving": services.residency.serving,
        "holds": sorted(services.residency.held),
        "problems": {version: problem.message for version, problem in services.residency.problems.items()},
    }


def _matchup(services: Services, row: Matchup | None) -> dict[str, Any]:
    first, second = (row.first_version, row.second_version) if row else (None, None)
    held = services.residency.held
    return {
        "object": "matchup",
        "first_version": first,
        "second_version": second,
        # Whether this replica draws from it already: both must be loaded and proved.
        "ready": all(version is None or version in held for version in (first, second)),
    }
