"""Votes: a thumb, a rating, words on a reply; a choice on a comparison. Acknowledged when durable, never before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from deploy.rollout import Wanted
from feedback.ballots import MAX_COMMENT_CHARS, MAX_CORRECTION_CHARS, MAX_KEY_CHARS, MAX_REASON_CHARS, MAX_REASONS
from feedback.errors import FeedbackError, StorageError
from feedback.schema import Reply, TargetKind, now
from feedback.votes import Ballot, VoteOutcome, VoteResult, cast_vote, withdraw_vote
from server import metrics
from server.bare_route import BareRoute
from server.errors import ApiError
from server.identity import Scope
from server.openapi import Responses, body_of
from server.routing import CANARY, STABLE, track_of
from server.services import Services, services_of
from server.shapes import shown
from server.shapes import users as shapes
from server.wire import parse, read_json

router = APIRouter(prefix="/v1", tags=["votes"], route_class=BareRoute)

_UNFINISHED: Responses = {409: {"description": "It is unfinished, failed or empty"}}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body answer with the first result, however late; with another body 422.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS},
    "example": "5f2c",
}


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    reasons: list[Annotated[str, Field(min_length=1, max_length=MAX_REASON_CHARS)]] = Field(
        default_factory=list, max_length=MAX_REASONS
    )
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS)] | None = None


class Feedback(_Said):
    model_config = shown(
        {"thumb": "up", "reasons": ["friendly"]}, {"thumb": "down", "correction": "It costs 12 euros."}
    )
    thumb: Literal["up", "down"] | None = None
    rating: Annotated[float, Field(ge=0, le=1)] | None = None
    correction: Annotated[str, Field(max_length=MAX_CORRECTION_CHARS)] | None = None
    """The reply as one would have written it."""
    harmful: bool = False


class ChoiceBody(_Said):
    model_config = shown({"choice": "left", "comment": "clearer"})
    choice: Literal["left", "right", "tie", "both_bad"]


@router.put(
    "/replies/{reply_id}/feedback",
    response_model=shapes.Voted,
    openapi_extra=body_of(Feedback) | {"parameters": [_KEY]},
    responses=_UNFINISHED,
)
async def put_feedback(request: Request, reply_id: str) -> Response:
    """What one thinks of a reply of one's own, in place of what one said before. At least one field is needed."""
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    said = parse(Feedback, await read_json(request, services.settings.max_body_bytes))
    ballot = Ballot(**said.model_dump())
    result = await _cast(services, identity.user_id, TargetKind.REPLY, reply_id, ballot, key=_key(request))
    return _json({"object": "vote", "reply_id": reply_id, **_answer(result)})


@router.delete("/replies/{reply_id}/feedback", response_model=shapes.Voted)
async def delete_feedback(request: Request, reply_id: str) -> Response:
    """Takes the vote back."""
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    result = await _withdraw(services, identity.user_id, TargetKind.REPLY, reply_id)
    return _json({"object": "vote", "reply_id": reply_id, **_answer(result)})


@router.put(
    "/comparisons/{comparison_id}/choice",
    response_model=shapes.Chosen,
    openapi_extra=body_of(ChoiceBody) | {"parameters": [_KEY]},
    responses=_UNFINISHED,
)
async def put_choice(request: Request, comparison_id: str) -> Response:
    """Which side is better, in place of what one chose before. The response reveals the policies."""
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    said = parse(ChoiceBody, await read_json(request, services.settings.max_body_bytes))
    ballot = Ballot(**said.model_dump())
    result = await _cast(services, identity.user_id, TargetKind.COMPARISON, comparison_id, ballot, key=_key(request))
    revealed = await services.read(lambda session: reveal(session, comparison_id))
    return _json({"object": "choice", "comparison_id": comparison_id, "revealed": revealed, **_answer(result)})


@router.delete("/comparisons/{comparison_id}/choice", response_model=shapes.ChoiceWithdrawn)
async def delete_choice(request: Request, comparison_id: str) -> Response:
    """Takes the choice back. What was revealed stays revealed."""
    services = services_of(request)
    identity = await services.identity(request, Scope.FEEDBACK)
    result = await _withdraw(services, identity.user_id, TargetKind.COMPARISON, comparison_id)
    return _json({"object": "choice", "comparison_id": comparison_id, **_answer(result)})


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
    value = ballot.choice or ballot.thumb or "other"
    try:
        result = await services.write_statements(
            lambda connection: cast_vote(
                connection, user_id=user_id, target_kind=kind, target_id=target_id, ballot=ballot, idempotency_key=key
            ),
            one_row=True,
        )
    except FeedbackError as error:
        outcome = "failed" if isinstance(error, StorageError) else "rejected"
        metrics.vote_series(kind.value, value, metrics.NO_TRACK, outcome).inc()
        raise
    if result.outcome is VoteOutcome.ACCEPTED:
        services.vote_total.forget()  # who has just voted looks at it
    track = _track(result, services.residency.wanted)
    metrics.vote_series(kind.value, value, track, result.outcome.value).inc()
    ends = [reply.finished_at for reply in result.replies if reply.finished_at is not None]
    if result.outcome is VoteOutcome.ACCEPTED and ends:
        metrics.vote_delay_seconds.observe(max(0.0, (now() - max(ends)).total_seconds()))
    if result.flagged:
        metrics.harm_flags_total.labels(track).inc()
    return result


async def _withdraw(services: Services, user_id: str, kind: TargetKind, target_id: str) -> VoteResult:
    result = await services.write_statements(
        lambda connection: withdraw_vote(connection, user_id=user_id, target_kind=kind, target_id=target_id),
        one_row=True,
    )
    services.vote_total.forget()
    metrics.vote_series(kind.value, "none", metrics.NO_TRACK, result.outcome.value).inc()
    return result


def _track(result: VoteResult, wanted: Wanted) -> str:
    """Whose numbers the vote counts for.

    A comparison counts for the candidate when that stood on either side. Its replies' arms name sides, so who is the
    candidate now decides; any other reply keeps the track that it had.
    """
    tracks = {
        reply.arm if reply.arm in metrics.TRACKS else track_of(reply.policy_version, wanted) for reply in result.replies
    }
    return CANARY if CANARY in tracks else STABLE if tracks else metrics.NO_TRACK


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY_CHARS:
        raise ApiError(
            422,
            f"Idempotency-Key: 1 to {MAX_KEY_CHARS} characters",
            param="Idempotency-Key",
            code="invalid_value",
        )
    return key


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _answer(result: VoteResult) -> dict[str, Any]:
    return {"vote_id": result.vote_id, "revision": result.revision, "outcome": result.outcome.value}
