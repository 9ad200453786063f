"""POST /v1/comparisons: one question, two replies side by side, their policies hidden until the choice.

The two streams share one response; each chunk says its `side`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlmodel import Session

from feedback.ids import new_id
from feedback.ledger import begin_comparison, ensure_conversation, ensure_user
from feedback.schema import Comparison, Reply
from server.answer import Answer
from server.chat_request import ChatRequest
from server.completion import completion, usage_of_turns
from server.context import question_of, read_question
from server.engine import Chunk
from server.identity import Identity, Scope
from server.limits import Allowance
from server.openapi import REFUSALS, body_of, link, stream_of
from server.routing import Assignment, pair
from server.services import Services, services_of
from server.shapes import chat as shapes
from server.turn import Turn, check_room, title_of
from server.wire import ChunkWriter, parse, read_json

router = APIRouter(prefix="/v1", tags=["chat"])

SIDES = ("left", "right")
_NEXT = {
    "choose": link("put_choice", comparison_id="id"),
    "withdraw": link("delete_choice", comparison_id="id"),
    "vote": link("put_feedback", reply_id="left/choices/0/reply_id"),
}
_REFUSED = ("n", "logprobs", "response_format", "tools")
_draw = random.SystemRandom()


@router.post(
    "/comparisons",
    response_model=shapes.Comparison,
    openapi_extra=body_of(ChatRequest, refused=_REFUSED),
    responses={200: stream_of(shapes.SIDES_STREAM) | {"links": _NEXT}, **REFUSALS},
)
async def compare(request: Request) -> Response:
    """One question and two replies side by side, whose policies are hidden until the choice.

    With `stream` both come in one response, and each chunk says its `side`.
    """
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    allowance = services.admit(request, identity)
    body = parse(ChatRequest, await read_json(request, services.settings.max_body_bytes))
    duel = await open_duel(services, identity, body, allowance)
    request.state.track = duel.track
    return duel.response(stream=body.stream, include_usage=body.include_usage)


async def open_duel(
    services: Services,
    identity: Identity,
    body: ChatRequest,
    allowance: Allowance,
    *,
    comparison_rate: float | None = None,
) -> Duel:
    """Two policies, with one system prompt; where one policy would answer twice, two prompts, if so many are in use.

    `comparison_rate`: how likely this was, where the server and not the user wanted a comparison.
    """
    user_id, asked_at = identity.user_id, time.perf_counter()
    body.check(services.settings)
    body.refuse(*_REFUSED, by="a comparison")
    check_room(services, user_id, replies=2)
    asked = await read_question(services, identity, body)
    question = await question_of(services, asked, asked.prompt)
    prompts = asked.prompts.two(_draw) if asked.prompts else None
    prompted = [await question_of(services, asked, prompt) for prompt in prompts or ()]
    await services.residency.underway.settled()
    check_room(services, user_id, replies=2)  # again: others came while the questions were put together
    residency = services.residency
    drawn = pair(user_id, residency.wanted, residency.held, residency.serving, _draw, odds=services.draws.odds())
    one, other, propensity = question, question, drawn.propensity
    if prompts and drawn.left == drawn.right:
        (one, other), propensity = prompted, drawn.propensity * prompts[0].propensity
    one = replace(one, comparison_rate=comparison_rate)
    other = replace(other, comparison_rate=comparison_rate, sampling=other.sampling.variant(1))
    left = Turn(services, one, Assignment(drawn.left, "left", drawn.propensity), asked_at=asked_at)
    right = Turn(services, other, Assignment(drawn.right, "right", drawn.propensity), asked_at=asked_at)
    comparison_id = new_id("cmp")
    rows = [left.row(), right.row()]

    def append(session: Session) -> None:
        ensure_user(session, user_id)
        ensure_conversation(
            session,
            conversation_id=question.conversation_id,
            user_id=user_id,
            title=title_of(question.messages),
        )
        comparison = Comparison(
            id=comparison_id,
            user_id=user_id,
            conversation_id=question.conversation_id,
            left_reply_id=left.reply_id,
            right_reply_id=right.reply_id,
            propensity=propensity,
        )
        begin_comparison(session, comparison, *(Reply(**row.model_dump()) for row in rows))

    durable = services.background(services.write(append))
    for turn in (left, right):
        turn.begun_by(durable)
    return Duel(services, comparison_id, [left, right], allowance)


class Duel(Answer):
    """The two turns of one comparison, in the order of SIDES."""

    def __init__(self, services: Services, comparison_id: str, turns: Sequence[Turn], allowance: Allowance) -> None:
        super().__init__(services, turns, allowance)
        self._id = comparison_id
        self._conversation_id = turns[0].question.conversation_id
        self._writers = [
            ChunkWriter(
                turn.reply_id,
                services.settings.model_name,
                {"conversation_id": self._conversation_id, "comparison_id": comparison_id, "side": side},
            )
            for side, turn in zip(SIDES, turns, strict=True)
        ]

    def said(self, at: int, chunk: Chunk) -> bytes:
        return self._writers[at].chunk(chunk.text, chunk.finish_reason)

    def usage(self) -> bytes:
        return b"".join(
            writer.usage(usage_of_turns([turn])) for writer, turn in zip(self._writers, self.turns, strict=True)
        )

    def whole(self) -> dict[str, Any]:
        model = self.services.settings.model_name
        sides = {side: completion(model, [turn]) for side, turn in zip(SIDES, self.turns, strict=True)}
        for side in sides.values():
            del side["system_fingerprint"]  # hidden until the choice
        return {"id": self._id, "object": "comparison", "conversation_id": self._conversation_id, **sides}
