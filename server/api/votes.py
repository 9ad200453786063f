"""Votes: a thumb, a rating, words on a reply; a choice on a comparison. Acknowledged when durable, never before."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from deploy.rollout import Wanted
from feedback.errors import FeedbackError, StorageError
from feedback.schema import Reply, TargetKind, now
from feedback.votes import Ballot, VoteOutcome, VoteResult, cast_vote, withdraw_vote
from server import metrics
from server.identity import Scope
from server.routing import CANARY, STABLE, track_of
from server.services import Services, services_of
from server.wire import parse, read_json

router = APIRouter(prefix="/v1")


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reasons: list[str] = Field(default_factory=list)
    comment: str | None = None


class Feedback(_Said):
    thumb: str | None = None
    rating: Annotated[float | int, Field(ge=0, le=1)] | None = None
    correction: str | None = None
    harmful: bool = False


class ChoiceBody(_Said):
    choice: str


@router.put("/replies/{reply_id}/feedback")
async def put_feedback(request: Request, reply_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    said = parse(Feedback, await read_json(request, services.settings.max_body_bytes))
    ballot = Ballot(**said.model_dump())
    result = await _cast(services, identity.user_id, TargetKind.REPLY, reply_id, ballot, key=_key(request))
    return {"object": "vote", "reply_id": reply_id, **_answer(result)}


@router.delete("/replies/{reply_id}/feedback")
async def delete_feedback(request: Request, reply_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    result = await _withdraw(services, identity.user_id, TargetKind.REPLY, reply_id)
    return {"object": "vote", "reply_id": reply_id, **_answer(result)}


@router.put("/comparisons/{comparison_id}/choice")
async def put_choice(request: Request, comparison_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    said = parse(ChoiceBody, await read_json(request, services.settings.max_body_bytes))
    ballot = Ballot(**said.model_dump())
    result = await _cast(services, identity.user_id, TargetKind.COMPARISON, comparison_id, ballot, key=_key(request))
    revealed = await services.read(lambda session: reveal(session, comparison_id))
    return {"object": "choice", "comparison_id": comparison_id, "revealed": revealed, **_answer(result)}


@router.delete("/comparisons/{comparison_id}/choice")
async def delete_choice(request: Request, comparison_id: str) -> dict[str, Any]:
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    result = await _withdraw(services, identity.user_id, TargetKind.COMPARISON, comparison_id)
    return {"object": "choice", "comparison_id": comparison_id, **_answer(result)}


def reveal(session: Session, comparison_id: str) -> dict[str, str]:
    """Which policy stood on which side. Only for who has chosen."""
    rows = session.exec(
        select(Reply.side, Reply.policy_version).where(
            Reply.comparison_id == comparison_id, col(Reply.side).is_not(None)
        )
    )
    return {str(side): version for side, version in rows}


async def _cast(
    services: Services, user_id: str, kind: TargetKind, target_id: str, ballot: Ballot, *, key: str | None
) -> VoteResult:
    wanted = services.residency.wanted

    def cast(session: Session) -> tuple[VoteResult, str, float | None]:
        result = cast_vote(
            session, user_id=user_id, target_kind=kind, target_id=target_id, ballot=ballot, idempotency_key=key
        )
        return result, *_about(session, kind, target_id, wanted)

    value = ballot.choice or ballot.thumb or "other"
    try:
        result, track, delay_seconds = await services.write(cast)
    except FeedbackError as error:
        outcome = "failed" if isinstance(error, StorageError) else "rejected"
        metrics.votes_total.labels(kind.value, value, metrics.NO_TRACK, outcome).inc()
        raise
    metrics.votes_total.labels(kind.value, value, track, result.outcome.value).inc()
    if result.outcome is VoteOutcome.ACCEPTED and delay_seconds is not None:
        metrics.vote_delay_seconds.observe(max(0.0, delay_seconds))
    if ballot.harmful and result.outcome is not VoteOutcome.DUPLICATE:
        metrics.harm_flags_total.labels(track).inc()
    return result


async def _withdraw(services: Services, user_id: str, kind: TargetKind, target_id: str) -> VoteResult:
    result = await services.write(
        lambda session: withdraw_vote(session, user_id=user_id, target_kind=kind, target_id=target_id)
    )
    metrics.votes_total.labels(kind.value, "none", metrics.NO_TRACK, result.outcome.value).inc()
    return result


def _about(session: Session, kind: TargetKind, target_id: str, wanted: Wanted) -> tuple[str, float | None]:
    """The track that the vote counts for, and how long after the end of what it is about it came, in seconds.

    A comparison counts for the candidate when that stood on either side. Its replies' arms name sides, so who is the
    candidate now decides; any other reply keeps the track that it had.
    """
    target = Reply.comparison_id if kind is TargetKind.COMPARISON else Reply.id
    rows = session.exec(select(Reply.arm, Reply.policy_version, Reply.finished_at).where(target == target_id)).all()
    tracks = {arm if arm in metrics.TRACKS else track_of(version, wanted) for arm, version, _ in rows}
    ends = [finished_at for _, _, finished_at in rows if finished_at is not None]
    track = CANARY if CANARY in tracks else STABLE if tracks else metrics.NO_TRACK
    return track, (now() - max(ends)).total_seconds() if ends else None


def _key(request: Request) -> str | None:
    return request.headers.get("idempotency-key")


def _answer(result: VoteResult) -> dict[str, Any]:
    return {"vote_id": result.vote_id, "revision": result.revision, "outcome": result.outcome.value}
