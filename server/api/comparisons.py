"""POST /v1/comparisons: one question, two replies side by side, their policies hidden until the choice.

The two streams share one response; each chunk says its `side`. Whatever ends one of them early ends both: half a
comparison cannot be judged.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from sqlmodel import Session
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from feedback.errors import FeedbackError
from feedback.ids import new_id
from feedback.ledger import begin_comparison, ensure_conversation, ensure_user
from feedback.schema import Comparison, Reply
from server.api.chat import STOPPING, break_off, completion, give_up, refusal, told
from server.context import question_of
from server.engine import Chunk
from server.errors import EngineError
from server.identity import Scope
from server.routing import CANARY, STABLE, Assignment, pair
from server.services import Services, services_of
from server.streaming import Outlet, SlowReader, Watched
from server.turn import Turn, check_room, title_of
from server.wire import DONE, KEEPALIVE, ChatRequest, ChunkWriter, parse, read_json, usage_of

router = APIRouter(prefix="/v1")

SIDES = ("left", "right")
_draw = random.SystemRandom()


class Duel:
    """The two turns of one comparison."""

    def __init__(self, comparison_id: str, turns: dict[str, Turn]) -> None:
        self.id = comparison_id
        self.turns = turns

    @property
    def interrupted(self) -> bool:
        return any(turn.interrupted for turn in self.turns.values())

    @property
    def track(self) -> str:
        """Canary where the candidate stands on either side."""
        return CANARY if CANARY in {turn.track for turn in self.turns.values()} else STABLE

    async def each(self, end: Callable[[Turn], Any]) -> None:
        """All of them, whatever becomes of one; the first failure is raised at the end."""
        results = await asyncio.gather(*map(end, self.turns.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


@router.post("/comparisons")
async def compare(request: Request) -> Response:
    services = services_of(request)
    identity = await services.identity(request, Scope.CHAT)
    body = parse(ChatRequest, await read_json(request, services.settings.max_body_bytes))
    duel = await open_duel(services, identity.user_id, body)
    request.state.track = duel.track

    async def work(scope: AsgiScope, receive: Receive, send: Send) -> None:
        for turn in duel.turns.values():
            turn.task = asyncio.current_task()
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            await _stream(services, duel, scope, receive, send, include_usage=include_usage)
        else:
            await _whole(services, duel, scope, receive, send)

    return Watched(work)


async def open_duel(services: Services, user_id: str, body: ChatRequest) -> Duel:
    check_room(services, user_id, replies=2)
    question = await question_of(services, user_id, body)
    await services.residency.settled()
    check_room(services, user_id, replies=2)
    residency = services.residency
    drawn = pair(user_id, residency.wanted, residency.held, residency.serving, _draw)
    other = question
    if question.sampling.seed is not None:  # or two replies of one policy would be one reply
        other = replace(question, sampling=replace(question.sampling, seed=question.sampling.seed ^ 1))
    turns = {
        "left": Turn(services, question, Assignment(drawn.left, "left", drawn.propensity)),
        "right": Turn(services, other, Assignment(drawn.right, "right", drawn.propensity)),
    }
    comparison_id = new_id("cmp")
    rows = {side: turn.row() for side, turn in turns.items()}

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
            left_reply_id=turns["left"].reply_id,
            right_reply_id=turns["right"].reply_id,
            propensity=drawn.propensity,
        )
        begin_comparison(session, comparison, *(Reply(**rows[side].model_dump()) for side in SIDES))

    durable = services.background(services.write(append))
    for turn in turns.values():
        turn.begun_by(durable)
    return Duel(comparison_id, turns)


async def _stream(
    services: Services, duel: Duel, scope: AsgiScope, receive: Receive, send: Send, *, include_usage: bool
) -> None:
    outlet = Outlet(send, services.settings.send_timeout_seconds)
    writers = {
        side: ChunkWriter(
            turn.reply_id,
            services.settings.model_name,
            {"conversation_id": turn.question.conversation_id, "comparison_id": duel.id, "side": side},
        )
        for side, turn in duel.turns.items()
    }
    opened: set[str] = set()

    async def show(side: str, chunk: Chunk | None) -> None:
        if chunk is None:
            await outlet.write(KEEPALIVE)
            return
        writer = writers[side]
        written = b"" if side in opened else writer.role()
        opened.add(side)
        if chunk.text:
            written += writer.text(chunk.text)
        if chunk.finish_reason is not None:
            written += writer.finish(chunk.finish_reason)
        if written:
            await outlet.write(written)
        duel.turns[side].shown(chunk)

    try:
        await _both(services, duel, show)
        await duel.each(Turn.complete)
        end = b""
        if include_usage:
            for side, turn in duel.turns.items():
                end += writers[side].usage(_usage(turn))
        await outlet.write(end + DONE, more=False)
    except asyncio.CancelledError:
        if not duel.interrupted:
            await duel.each(lambda turn: turn.stop("disconnected"))
            raise
        await duel.each(Turn.cut)
        await break_off(outlet, scope, *STOPPING)
    except SlowReader:
        await duel.each(lambda turn: turn.stop("slow_reader"))
    except (EngineError, FeedbackError) as error:
        failure = error
        await duel.each(lambda turn: give_up(turn, failure))
        status, message, code = told(error)
        if outlet.started:
            await break_off(outlet, scope, status, message, code)
        else:
            await refusal(status, message, code)(scope, receive, send)


async def _both(services: Services, duel: Duel, show: Callable[[str, Chunk | None], Any]) -> None:
    """Read both turns and show each chunk as it comes. The first failure ends both."""
    # Bounded: a reader of the response that is slow slows both generations' reading, not the memory.
    arrived: asyncio.Queue[tuple[str, Chunk | Exception | None, bool]] = asyncio.Queue(maxsize=8)

    async def read(side: str) -> None:
        try:
            async with aclosing(duel.turns[side].chunks(services.settings.keepalive_seconds)) as chunks:
                async for chunk in chunks:
                    await arrived.put((side, chunk, False))
            await arrived.put((side, None, True))
        except Exception as error:  # not handled here: raised where both are read
            await arrived.put((side, error, True))

    readers = [asyncio.create_task(read(side)) for side in SIDES]
    try:
        open_sides = len(readers)
        while open_sides:
            side, item, ended = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if ended:
                open_sides -= 1
            else:
                await show(side, item)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def _whole(services: Services, duel: Duel, scope: AsgiScope, receive: Receive, send: Send) -> None:
    async def show(side: str, chunk: Chunk | None) -> None:
        if chunk is not None:
            duel.turns[side].shown(chunk)

    try:
        await _both(services, duel, show)
        await duel.each(Turn.complete)
    except asyncio.CancelledError:
        for turn in duel.turns.values():
            turn.nothing_shown()
        if not duel.interrupted:
            await duel.each(lambda turn: turn.stop("disconnected"))
            raise
        await duel.each(Turn.cut)
        await refusal(*STOPPING)(scope, receive, send)
        return
    except (EngineError, FeedbackError) as error:
        failure = error
        await duel.each(lambda turn: give_up(turn, failure))
        await refusal(*told(error))(scope, receive, send)
        return
    sides = {side: completion(services, turn) for side, turn in duel.turns.items()}
    for side in sides.values():
        del side["system_fingerprint"]  # hidden until the choice
    body = {
        "id": duel.id,
        "object": "comparison",
        "conversation_id": duel.turns["left"].question.conversation_id,
        **sides,
    }
    await Response(orjson.dumps(body), media_type="application/json")(scope, receive, send)


def _usage(turn: Turn) -> dict[str, Any]:
    return usage_of(len(turn.question.prompt_token_ids), len(turn.token_ids), turn.cached_tokens)
