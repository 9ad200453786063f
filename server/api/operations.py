"""For operators: policies with their lines, rollouts, the matchup, training runs, and who beats whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from deploy import controller, matchups, policies, replicas, rollout
from deploy.leaderboard import By, board, choices_of
from deploy.observed import SHADOW, Evidence, Served
from deploy.replicas import Standing
from feedback.schema import Matchup, Policy, Rollout, TrainingRun
from server.errors import ApiError
from server.identity import Scope
from server.openapi import Responses, body_of
from server.services import Services, services_of
from server.shapes import leaderboard, rollouts, shown
from server.shapes import operators as shapes
from server.wire import parse, read_json

router = APIRouter(prefix="/v1", tags=["operators"])

_REFUSED: Responses = {409: {"description": "The rollout's state, or the gate, does not allow it"}}
_NO_ROLLOUT: Responses = {404: {"description": "There is no rollout"}}

TRAINING_REQUEST = "train.request"  # in the home folder; the trainer takes it away when it starts


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StartBody(_Body):
    model_config = shown({"version": "v1-0a1b2c3d", "share": 0.05, "reason": "more friendly"})
    version: str
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    reason: str = ""
    force: bool = False
    shadow: bool = False


class ReasonBody(_Body):
    model_config = shown({"reason": "looks well"})
    reason: str = ""


class StepBody(ReasonBody):
    model_config = shown({"share": 0.25, "reason": "looks well"})
    share: Annotated[float, Field(gt=0, le=1)] | None = None


class MatchupBody(_Body):
    model_config = shown({"first_version": "v1-0a1b2c3d", "second_version": "v0-4e5f6a7b"})
    first_version: str | None = None
    second_version: str | None = None
    automatic: bool = False
    versions: list[str] | None = None


def _step(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a step: all answer with the rollout, and need no body."""
    return {
        "response_model": rollouts.Rollout,
        "openapi_extra": body_of(kind, required=False),
        "responses": _REFUSED | _NO_ROLLOUT,
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
    response_model=rollouts.Rollout,
    openapi_extra=body_of(StartBody),
    responses=_REFUSED | {404: {"description": "There is no such policy"}},
)
async def start_rollout(request: Request) -> dict[str, Any]:
    """Lets a policy meet a share of users, or nobody while it answers in shadow.

    `force` passes over the gate's verdict, and is recorded.
    """
    body = await _asked(request, StartBody)
    return await _change(
        request,
        lambda session, actor: rollout.start(
            session, body.version, body.share, actor, reason=body.reason, force=body.force, shadow=body.shadow
        ),
    )


@router.get("/rollouts/current", response_model=rollouts.CurrentRollout, responses=_NO_ROLLOUT)
async def current_rollout(request: Request) -> dict[str, Any]:
    """The rollout, what the evidence says now, who did what, and what the replicas hold."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    return await _current(services)


@router.post("/rollouts/current/advance", **_step(StepBody))
async def advance(request: Request) -> dict[str, Any]:
    """The next share of users, or the one that is named."""
    body = await _asked(request, StepBody)
    return await _change(request, lambda session, actor: rollout.advance(session, actor, body.reason, share=body.share))


@router.post("/rollouts/current/hold", **_step(ReasonBody))
async def hold(request: Request) -> dict[str, Any]:
    """The controller waits until the rollout is resumed."""
    body = await _asked(request, ReasonBody)
    return await _change(request, lambda session, actor: rollout.hold(session, actor, body.reason))


@router.post("/rollouts/current/resume", **_step(ReasonBody))
async def resume(request: Request) -> dict[str, Any]:
    """The controller looks at the rollout again."""
    body = await _asked(request, ReasonBody)
    return await _change(request, lambda session, actor: rollout.resume(session, actor, body.reason))


@router.post("/rollouts/current/promote", **_step(StepBody))
async def promote(request: Request) -> dict[str, Any]:
    """The candidate serves everyone, and is what later rollouts return to."""
    body = await _asked(request, StepBody)
    return await _change(request, lambda session, actor: rollout.promote(session, actor, body.reason))


@router.post("/rollouts/current/rollback", **_step(StepBody))
async def rollback(request: Request) -> dict[str, Any]:
    """Everyone gets the stable policy again."""
    body = await _asked(request, StepBody)
    return await _change(request, lambda session, actor: rollout.rollback(session, actor, body.reason))


@router.get("/matchup", response_model=rollouts.Matchup)
async def get_matchup(request: Request) -> dict[str, Any]:
    """Which two policies comparisons draw from; nulls: the serving one, against itself."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    return await services.read(lambda session: _matchup(services, matchups.newest(session)))


@router.put(
    "/matchup",
    response_model=rollouts.Matchup,
    openapi_extra=body_of(MatchupBody, required=False),
    responses=_REFUSED | {404: {"description": "There is no such policy"}},
)
async def put_matchup(request: Request) -> dict[str, Any]:
    """Sets the two policies that comparisons draw from, or lets pairs be drawn by what is known of them."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    body = await _asked(request, MatchupBody)
    if len(body.versions or ()) > services.settings.max_loras:
        raise ApiError(
            422,
            f"at most {services.settings.max_loras} policies can be held at once (KUDOS_MAX_LORAS)",
            param="versions",
            code="invalid_value",
        )
    await services.write(
        lambda session: matchups.choose(
            session,
            body.first_version,
            body.second_version,
            identity.actor,
            automatic=body.automatic,
            versions=body.versions,
        )
    )
    services.residency.nudge()
    return await get_matchup(request)


@router.get("/training/runs", response_model=shapes.Runs)
async def training_runs(request: Request) -> dict[str, Any]:
    """The hundred newest runs, newest first."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)

    def read(session: Session) -> list[dict[str, Any]]:
        rows = session.exec(select(TrainingRun).order_by(col(TrainingRun.started_at).desc()).limit(100))
        return [row.model_dump() for row in rows]

    return {"object": "list", "data": await services.read(read)}


@router.post("/training/runs", status_code=202, response_model=shapes.RunRequested)
async def request_training_run(request: Request) -> dict[str, Any]:
    """Asks for a run now, however few votes are new. The trainer that runs beside the server looks for the file."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    path = services.settings.home / TRAINING_REQUEST
    await asyncio.to_thread(path.write_text, f"{identity.actor}\n")
    return {"object": "training.request", "requested": True}


@router.get("/leaderboard", response_model=leaderboard.Leaderboard)
async def get_leaderboard(
    request: Request, by: Annotated[By, Query(description="Whom to compare.")] = By.POLICY
) -> dict[str, Any]:
    """Who is preferred: strengths with bounds, raw and for replies that look alike; and which pairs are drawn next."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    choices = await services.read(lambda session: choices_of(session, by))
    pool, odds = services.draws.pool, services.draws.odds()
    pairs = [{"first": first, "second": second, "probability": p} for (first, second), p in odds.items()]
    return {
        "object": "leaderboard",
        "by": by,
        **await asyncio.to_thread(board, choices),
        "draws": {"automatic": bool(services.residency.wanted.pool), "held": pool, "pairs": pairs},
    }


async def _asked(request: Request, kind: type[Any]) -> Any:
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return parse(kind, {})
    return parse(kind, await read_json(request, services.settings.max_body_bytes))


async def _change(request: Request, change: Callable[[Session, str], Rollout]) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    changed = await services.write(lambda session: _rollout(change(session, identity.actor)))
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
            "decision": look.decision.as_dict() if look else None,  # what the evidence says now
            "evidence": _evidence(look.evidence) if look else None,
            "plan": services.plan.model_dump(exclude={"watch", "look_seconds"}),
            "events": [
                event.model_dump(exclude={"rollout_id"}) for event, of in rollout.events(session) if of.id == row.id
            ],
            "replicas": [
                {**replica.model_dump(), "heard_of": standing is not Standing.SILENT, "standing": standing}
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


def _policy(row: Policy) -> dict[str, Any]:
    return {"object": "policy", **row.model_dump(exclude={"path"})}


def _wanted(services: Services) -> dict[str, Any]:
    wanted = services.residency.wanted
    return {
        "stable": wanted.stable,
        "candidate": wanted.candidate,
        "share": wanted.share,
        "shadow": wanted.shadow,
        "base": wanted.base,
        "matchup": wanted.matchup,
        "serving": services.residency.serving,
        "holds": sorted(services.residency.held),
        "problems": {version: problem.message for version, problem in services.residency.problems.items()},
    }


def _matchup(services: Services, row: Matchup | None) -> dict[str, Any]:
    first, second = (row.first_version, row.second_version) if row else (None, None)
    automatic, held = bool(row and row.automatic), services.residency.held
    named = (row.versions if row and row.versions else services.residency.wanted.pool) if automatic else (first, second)
    return {
        "object": "matchup",
        "first_version": first,
        "second_version": second,
        "automatic": automatic,
        "versions": row.versions if row else None,
        # Whether this replica draws from it already: all must be loaded and proved.
        "ready": all(version is None or version in held for version in named),
    }
