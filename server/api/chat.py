"""POST /v1/chat/completions and GET /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer import Answer
from server.context import question_of
from server.engine import Chunk
from server.identity import Scope
from server.services import Services, services_of
from server.turn import Turn, begin, check_room
from server.wire import ChatRequest, ChunkWriter, logprobs_of, parse, read_json, usage_of

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    services = services_of(request)
    await services.identity(request, Scope.CHAT)
    created = int(services.residency.started_at.timestamp())
    name = services.settings.model_name
    return {"object": "list", "data": [{"id": name, "object": "model", "created": created, "owned_by": "kudos"}]}


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    body = parse(ChatRequest, await read_json(request, services.settings.max_body_bytes))
    turn = await open_turn(services, identity.user_id, body)
    request.state.track = turn.assignment.arm
    return Completion(services, turn, logprobs=bool(body.logprobs)).response(
        stream=body.stream, include_usage=body.include_usage
    )


async def open_turn(services: Services, user_id: str, body: ChatRequest) -> Turn:
    check_room(services, user_id)
    question = await question_of(services, user_id, body)
    await services.residency.settled()
    check_room(services, user_id)  # again: others came while the question was put together
    turn = Turn(services, question, services.residency.assign(user_id))
    begin(services, [turn])
    return turn


class Completion(Answer):
    def __init__(self, services: Services, turn: Turn, *, logprobs: bool) -> None:
        super().__init__(services, [turn])
        self._vocabulary = services.prompts.vocabulary if logprobs else None
        self._writer = ChunkWriter(
            turn.reply_id,
            services.settings.model_name,
            {"system_fingerprint": turn.version, "conversation_id": turn.question.conversation_id},
        )

    def said(self, at: int, chunk: Chunk) -> bytes:
        content = self._vocabulary.content(chunk.token_ids, chunk.logprobs, chunk.likely) if self._vocabulary else ()
        return self._writer.chunk(chunk.text, chunk.finish_reason, content)

    def usage(self) -> bytes:
        return self._writer.usage(usage_of_turn(self.turns[0]))

    def whole(self) -> dict[str, Any]:
        turn = self.turns[0]
        body = completion(self.services, turn)
        if self._vocabulary:
            content = self._vocabulary.content(turn.token_ids, turn.logprobs, turn.likely)
            body["choices"][0]["logprobs"] = logprobs_of(content)
        return body


def completion(services: Services, turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.reply_id,
        "object": "chat.completion",
        "created": int(turn.created_at.timestamp()),
        "model": services.settings.model_name,
        "system_fingerprint": turn.version,
        "conversation_id": turn.question.conversation_id,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": turn.text, "refusal": None},
                "logprobs": None,
                "finish_reason": turn.finish_reason,
            }
        ],
        "usage": usage_of_turn(turn),
    }


def usage_of_turn(turn: Turn) -> dict[str, Any]:
    return usage_of(len(turn.question.prompt_token_ids), len(turn.token_ids), turn.cached_tokens)
