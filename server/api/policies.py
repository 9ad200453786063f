"""For operators: policies with their lines, what comparisons draw from, and who is preferred."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlmodel import Session

from deploy import matchups, policies
from deploy.leaderboard import By, board, choices_of
from feedback.schema import Matchup, Policy
from server.errors import ApiError
from server.identity import Scope
from server.openapi import body_of
from server.services import Services, services_of
from server.settings import MOST_LORAS
from server.shapes import Body, leaderboard, rollouts, shown
from server.shapes import operators as shapes
from server.wire import read_optional

router = APIRouter(prefix="/v1", tags=["operators"])


class MatchupBody(Body):
    model_config = shown({"first_version": "v1-0a1b2c3d", "second_version": "v0-4e5f6a7b"})
    first_version: str | None = None
    second_version: str | None = None
    automatic: bool = False
    versions: Annotated[list[str], Field(max_length=MOST_LORAS)] | None = None


@router.get("/policies", response_model=shapes.Policies)
async def all_policies(request: Request) -> dict[str, Any]:
    """Every policy, oldest first, and what this replica should hold and does."""
    services = services_of(request)
    await services.identity(request, Scope.OPERATOR)
    rows = await services.read(lambda session: [_policy(row) for row in policies.everything(session)])
    return {"object": "list", "data": rows, "wanted": _wanted(services), "steps": services.plan.steps}


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
    responses={
        404: {"description": "There is no such policy"},
        409: {"description": "The policy's state does not allow it"},
    },
)
async def put_matchup(request: Request) -> dict[str, Any]:
    """Sets the two policies that comparisons draw from, or lets pairs be drawn by what is known of them."""
    services = services_of(request)
    identity = await services.identity(request, Scope.OPERATOR)
    body = await read_optional(request, MatchupBody, services.settings.max_body_bytes)
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
        "folded": services.residency.folded,
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
