"""POST /v1/chat/completions and GET /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from feedback.errors import FeedbackError
from server.context import question_of
from server.errors import EngineDead, EngineError, RequestRefused, error_body
from server.identity import Scope
from server.services import Services, services_of
from server.streaming import Outlet, SlowReader, Watched
from server.turn import Turn, check_room
from server.wire import DONE, KEEPALIVE, ChatRequest, ChunkWriter, error_event, parse, read_json, usage_of

router = APIRouter(prefix="/v1")

STOPPING = (503, "the server is stopping", "stopping")


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
    request.state.track = turn.track

    async def work(scope: AsgiScope, receive: Receive, send: Send) -> None:
        turn.task = asyncio.current_task()
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            await _stream(services, turn, scope, receive, send, include_usage=include_usage)
        else:
            await _whole(services, turn, scope, receive, send)

    return Watched(work)


async def open_turn(services: Services, user_id: str, body: ChatRequest) -> Turn:
    check_room(services, user_id)
    question = await question_of(services, user_id, body)
    await services.residency.settled()
    check_room(services, user_id)  # again: others came while the question was put together
    turn = Turn(services, question, services.residency.assign(user_id))
    turn.begin()
    return turn


async def _stream(
    services: Services, turn: Turn, scope: AsgiScope, receive: Receive, send: Send, *, include_usage: bool
) -> None:
    outlet = Outlet(send, services.settings.send_timeout_seconds)
    writer = ChunkWriter(
        turn.reply_id,
        services.settings.model_name,
        {"system_fingerprint": turn.version, "conversation_id": turn.question.conversation_id},
    )
    try:
        async with aclosing(turn.chunks(services.settings.keepalive_seconds)) as chunks:
            opened = False
            async for chunk in chunks:
                if chunk is None:
                    await outlet.write(KEEPALIVE)
                    continue
                written = b"" if opened else writer.role()
                opened = True
                if chunk.text:
                    written += writer.text(chunk.text)
                if chunk.finish_reason is not None:
                    written += writer.finish(chunk.finish_reason)
                if written:
                    await outlet.write(written)
                turn.shown(chunk)
        await turn.complete()
        end = writer.usage(usage_of_turn(turn)) if include_usage else b""
        await outlet.write(end + DONE, more=False)
    except asyncio.CancelledError:
        if not turn.interrupted:
            await turn.stop("disconnected")
            raise
        await turn.cut()
        await break_off(outlet, scope, *STOPPING)
    except SlowReader:
        await turn.stop("slow_reader")
    except (EngineError, FeedbackError) as error:
        await give_up(turn, error)
        status, message, code = told(error)
        if outlet.started:
            await break_off(outlet, scope, status, message, code)
        else:
            await refusal(status, message, code)(scope, receive, send)


async def _whole(services: Services, turn: Turn, scope: AsgiScope, receive: Receive, send: Send) -> None:
    try:
        async with aclosing(turn.chunks(services.settings.keepalive_seconds)) as chunks:
            async for chunk in chunks:
                if chunk is not None:
                    turn.shown(chunk)
        await turn.complete()
    except asyncio.CancelledError:
        turn.nothing_shown()
        if not turn.interrupted:
            await turn.stop("disconnected")
            raise
        await turn.cut()
        await refusal(*STOPPING)(scope, receive, send)
        return
    except (EngineError, FeedbackError) as error:
        await give_up(turn, error)
        await refusal(*told(error))(scope, receive, send)
        return
    response = Response(orjson.dumps(completion(services, turn)), media_type="application/json")
    await response(scope, receive, send)


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


async def break_off(outlet: Outlet, scope: AsgiScope, status: int, message: str, code: str | None) -> None:
    """End a stream with an error event. The request is counted with this status, though it began with 200."""
    scope["state"]["ended_as"] = status
    await outlet.write(error_event(status, message, code), more=False)


async def give_up(turn: Turn, error: Exception) -> None:
    await turn.fail("storage" if isinstance(error, FeedbackError) else "engine")


def told(error: Exception) -> tuple[int, str, str | None]:
    """The status, words and code for a failure of the engine or the database."""
    if isinstance(error, FeedbackError):
        return error.status, str(error), error.code
    if isinstance(error, RequestRefused):
        return 400, f"the engine refused the request: {error}", "invalid_value"
    if isinstance(error, EngineDead):
        return 503, "the engine died; it is being started again", "engine_dead"
    return 500, "the engine failed", "engine_error"


def refusal(status: int, message: str, code: str | None) -> JSONResponse:
    headers = {"retry-after": "2"} if status == 503 else None
    return JSONResponse(error_body(status, message, code=code), status_code=status, headers=headers)
