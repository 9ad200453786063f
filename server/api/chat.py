"""POST /v1/chat/completions and GET /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from feedback.ids import new_id
from server import shadow
from server.answer import Answer
from server.api.comparisons import open_duel
from server.bare_route import BareRoute
from server.chat_request import ChatRequest, check_model
from server.completion import completion, usage_of_turns
from server.context import question_of, read_question
from server.engine import Chunk
from server.errors import ApiError
from server.identity import Identity, Scope
from server.limits import Allowance
from server.openapi import REFUSALS, body_of, link, stream_of
from server.routing import offers_two
from server.services import Services, services_of
from server.shapes import chat as shapes
from server.tool_calls import CallReader, parsed
from server.turn import Turn, begin, check_room
from server.vocabulary import Vocabulary
from server.wire import ChunkWriter, parse, read_json

router = APIRouter(prefix="/v1", tags=["chat"], route_class=BareRoute)

_NEXT = {
    "vote": link("put_feedback", reply_id="choices/0/reply_id"),
    "withdraw": link("delete_feedback", reply_id="choices/0/reply_id"),
    "read": link("reply", reply_id="choices/0/reply_id"),
    "conversation": link("conversation", conversation_id="conversation_id"),
}


@router.get("/models", response_model=shapes.Models)
async def models(request: Request) -> Response:
    """The one model that requests may name. Which policy stands behind it, `system_fingerprint` tells."""
    services = services_of(request)
    await services.identity(request, Scope.CHAT)
    return JSONResponse({"object": "list", "data": [_model(services)]})


@router.get("/models/{model:path}", response_model=shapes.Model)
async def model(request: Request, model: str) -> Response:
    """The model by its name."""
    services = services_of(request)
    await services.identity(request, Scope.CHAT)
    check_model(model, services.settings)
    return JSONResponse(_model(services))


def _model(services: Services) -> dict[str, Any]:
    created = int(services.residency.started_at.timestamp())
    return {"id": services.settings.model_name, "object": "model", "created": created, "owned_by": "kudos"}


@router.post(
    "/chat/completions",
    response_model=shapes.Completion,
    openapi_extra=body_of(ChatRequest),
    responses={200: stream_of(shapes.STREAM) | {"links": _NEXT}, **REFUSALS},
)
async def chat_completions(request: Request) -> Response:
    """A reply, or `n` of them; with `stream` as events. By the time that `[DONE]` or the whole is read, it is durable.

    A failure in mid-stream is an event with an error, and the last one.
    """
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    allowance = services.admit(request, identity)
    body = parse(ChatRequest, await read_json(request, services.settings.max_body_bytes))
    vocabulary = services.prompts.vocabulary if body.logprobs else None
    rate = comparison_rate(services, identity, body)
    if rate is not None and offers_two(identity.user_id, _place(body), rate):
        answer: Answer = await open_duel(services, identity, body, allowance, comparison_rate=rate)
    else:
        turns = await open_turns(services, identity, body, comparison_rate=rate)
        answer = Completion(services, turns, allowance, vocabulary, calls=bool(body.offered))
    request.state.track = answer.track
    return answer.response(stream=body.stream, include_usage=body.include_usage)


def comparison_rate(services: Services, identity: Identity, body: ChatRequest) -> float | None:
    """How likely this request is answered with two replies to choose between; None where that is not asked for."""
    if not (body.may_compare and body.is_plain and Scope.FEEDBACK in identity.scopes):
        return None
    try:
        check_room(services, identity.user_id, replies=2)
    except ApiError:
        return None  # there may be room for one
    return services.settings.comparison_rate


def _place(body: ChatRequest) -> str:
    """What is drawn by: the same message in the same place of a conversation is not drawn for twice."""
    return f"{body.parent_id or body.conversation_id or new_id('conv')}\0{body.messages[-1].content}"


async def open_turns(
    services: Services, identity: Identity, body: ChatRequest, *, comparison_rate: float | None = None
) -> list[Turn]:
    """The choices of one request: replies of one policy to one question."""
    user_id, asked_at = identity.user_id, time.perf_counter()
    body.check(services.settings)
    if body.logprobs and body.stop and services.safety is not None and services.safety.cuts:
        # With stop strings a token comes before its text does, and its logprob would spell what is held back.
        raise ApiError(400, "logprobs: not with stop while a safety filter is on", param="logprobs", code="unsupported")
    check_room(services, user_id, body.choices)
    asked = await read_question(services, identity, body)
    question = await question_of(services, asked, asked.prompt)
    await services.residency.underway.settled()
    check_room(services, user_id, body.choices)  # again: others came while the question was put together
    assignment = services.residency.assign(user_id)
    # Last choice first: a conversation goes on from its newest reply, which is to be the first choice. The others are
    # in the log as what it was regenerated from.
    turns: list[Turn] = []
    for index in reversed(range(body.choices)):
        before = turns[0].reply_id if turns else None
        each = replace(
            question,
            sampling=question.sampling.variant(index),
            regenerate_of=question.regenerate_of or before,
            comparison_rate=comparison_rate,
        )
        turns.append(Turn(services, each, assignment, asked_at=asked_at))
    begin(services, turns)
    if body.choices == 1:
        shadow.consider(services, turns[0])
    return turns[::-1]


class Completion(Answer):
    """OpenAI's chat completion. Its id is its first choice's."""

    def __init__(
        self,
        services: Services,
        turns: Sequence[Turn],
        allowance: Allowance,
        vocabulary: Vocabulary | None,
        *,
        calls: bool,
    ) -> None:
        super().__init__(services, turns, allowance)
        self._vocabulary = vocabulary  # where logprobs are asked for
        self._readers = [CallReader() for _ in turns] if calls else []
        first = turns[0]
        self._writers = [
            ChunkWriter(
                turn.reply_id,
                services.settings.model_name,
                {"system_fingerprint": first.version, "conversation_id": first.question.conversation_id},
                index=index,
                completion_id=first.reply_id,
            )
            for index, turn in enumerate(turns)
        ]

    def said(self, at: int, chunk: Chunk) -> bytes:
        content = self._vocabulary.content(chunk.token_ids, chunk.logprobs, chunk.likely) if self._vocabulary else ()
        if not self._readers:
            return self._writers[at].chunk(chunk.text, chunk.finish_reason, content)
        text = self._readers[at].read(chunk.text)
        if chunk.finish_reason is None:
            return self._writers[at].chunk(text, None, content)
        rest, calls = self._readers[at].end()
        return self._writers[at].chunk(text + rest, _finish_reason(chunk.finish_reason, calls), content, calls)

    def usage(self) -> bytes:
        return self._writers[0].usage(usage_of_turns(self.turns))

    def whole(self) -> dict[str, Any]:
        body = completion(self.services.settings.model_name, self.turns, self._vocabulary)
        for choice in body["choices"] if self._readers else ():
            said, calls = parsed(choice["message"]["content"])
            if calls:
                choice["message"] |= {"content": said or None, "tool_calls": calls}
                choice["finish_reason"] = _finish_reason(choice["finish_reason"], calls)
        return body


def _finish_reason(reason: str | None, calls: Sequence[Any]) -> str | None:
    return "tool_calls" if calls and reason == "stop" else reason
