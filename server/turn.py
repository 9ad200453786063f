"""One chat turn, from a request to a durable reply.

`begin` hands the new replies to the ledger. `chunks` yields what the engine says; the caller sends each and calls
`shown`; at the end exactly one of `complete`, `stop`, `fail` and `cut` writes what was shown. The beginning is written
while the engine already works on the prompt; nothing is shown before it is durable.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, repeat
from typing import Any

from sqlalchemy import Connection

from feedback.errors import FeedbackError, StorageError, UnknownTarget
from feedback.ids import new_id, prompt_digest
from feedback.ledger import begin_reply, finish_reply
from feedback.packing import pack_ids
from feedback.refusals import refuses
from feedback.replies import storable
from feedback.samples import CONTENT_FILTER
from feedback.schema import Reply, ReplyState, now
from server import metrics
from server.engine import Chunk, Sampling
from server.errors import ApiError
from server.routing import Assignment, track_of
from server.safety.screen import Screen
from server.services import Services
from server.system_prompts import Chosen

log = logging.getLogger("kudos.turn")

_TITLE_CHARS = 60
_TRIM_TOKENS = 64  # further back than any half character or stop string
_FINISH_RETRIES_SECONDS = (0.2, 1.0, 5.0, 15.0)  # then the last one again, as long as it takes


@dataclass(frozen=True)
class Question:
    """What is asked, checked and complete: the messages are the whole context."""

    user_id: str
    messages: list[dict[str, Any]]
    prompt_token_ids: list[int]
    sampling: Sampling
    conversation_id: str
    parent_id: str | None = None
    regenerate_of: str | None = None
    tools: Sequence[dict[str, Any]] = ()  # that the reply may call
    comparison_rate: float | None = None  # where two replies might be offered: how likely that was
    prompt: Chosen | None = None  # the operator's system prompt, which is the first of the messages


class Turn:
    def __init__(
        self, services: Services, question: Question, assignment: Assignment, *, asked_at: float | None = None
    ) -> None:
        """asked_at: by `time.perf_counter`, when the request came; unset: now."""
        self._services = services
        self.question = question
        self.assignment = assignment
        self.track = track_of(assignment.version, services.residency.wanted)
        self.reply_id = new_id("chatcmpl")
        self.created_at: datetime = now()
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.likely: list[Sequence[tuple[int, float]]] = []  # shown where asked for, and not stored
        self.cached_tokens = 0
        self.finish_reason: str | None = None
        self._asked_at = time.perf_counter() if asked_at is None else asked_at
        self._first_at: datetime | None = None
        self._last = self._first = self._asked_at
        self._seen = False  # something of it, by whoever asked
        self._begun: asyncio.Future[Any] | None = None
        self._ended = False
        self.interrupted = False
        self.ended_as: ReplyState | None = None
        self.over = asyncio.Event()  # its end is written, or cannot be
        self._screen = None if services.safety is None else Screen(services.safety, self.track)
        self.task: asyncio.Task[Any] | None = None  # that sends this turn's body
        self._epoch = services.residency.underway.enter(assignment.version)
        services.streams[question.user_id] += 1
        services.live.add(self)
        metrics.streams_active.inc()

    @property
    def version(self) -> str:
        return self.assignment.version

    def row(self) -> Reply:
        question, sampling = self.question, self.question.sampling
        # Only where there is one: its being there is what keeps a reply out of training.
        held = {"json_schema": sampling.json_schema, "tools": question.tools or None}
        offer = {} if question.comparison_rate is None else {"comparison_rate": question.comparison_rate}
        return Reply(
            id=self.reply_id,
            conversation_id=question.conversation_id,
            user_id=question.user_id,
            parent_id=question.parent_id,
            regenerate_of=question.regenerate_of,
            created_at=self.created_at,
            state=ReplyState.STREAMING,
            messages=question.messages,
            prompt_digest=prompt_digest(question.messages),
            prompt_token_ids=pack_ids(question.prompt_token_ids),
            sampling={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
                "stop": list(sampling.stop),
                "seed": sampling.seed,
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                **{name: value for name, value in held.items() if value is not None},
                **offer,
            },
            template_digest=self._services.prompts.template_digest,
            policy_version=self.version,
            arm=self.assignment.arm,
            propensity=self.assignment.propensity,
            prompt_version=question.prompt.version if question.prompt else None,
            prompt_propensity=question.prompt.propensity if question.prompt else None,
            replica_id=self._services.residency.replica_id,
        )

    def begun_by(self, durable: asyncio.Future[Any]) -> None:
        """What `chunks` waits for before it shows anything: the reply's being durable."""
        self._begun = durable

    def heard(self, keepalive_seconds: float) -> AsyncGenerator[Chunk | None, None]:
        """What may be shown of what the engine says; the rest as `chunks`. Raises FilterFailed too."""
        chunks = self.chunks(keepalive_seconds)
        return chunks if self._screen is None else self._screen.passed(chunks)

    async def chunks(self, keepalive_seconds: float) -> AsyncGenerator[Chunk | None, None]:
        """What the engine says; None when it has said nothing for `keepalive_seconds` before its first token.

        Raises:
            EngineError: the generation failed.
            FeedbackError: the reply could not be made durable; nothing was shown.
        """
        assert self._begun is not None
        question = self.question
        generation = self._services.engine.generate(
            self.reply_id, question.prompt_token_ids, question.sampling, self.version
        )
        async with aclosing(generation) as outputs:
            first = asyncio.ensure_future(anext(outputs))
            try:
                while not first.done():
                    await asyncio.wait({first}, timeout=keepalive_seconds)
                    if not first.done():
                        yield None
                while not self._begun.done():
                    await asyncio.wait({self._begun}, timeout=keepalive_seconds)
                    if not self._begun.done():
                        yield None
                self._begun.result()
            finally:
                if not first.done():
                    first.cancel()
                    await asyncio.wait({first})
            chunk = first.result()
            self._first_at, self._first = now(), time.perf_counter()
            self.cached_tokens = chunk.cached_tokens
            yield chunk
            async for chunk in outputs:
                yield chunk

    def shown(self, chunk: Chunk) -> None:
        """The chunk has been handed to the client."""
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.likely += chunk.likely
        self._last = time.perf_counter()
        if not self._seen:
            self._seen = True
            metrics.time_to_first_token_seconds.labels(self.track).observe(self._last - self._asked_at)
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason

    def nothing_shown(self) -> None:
        """The reader left before a whole reply could be sent."""
        self.text, self.token_ids, self.logprobs, self.finish_reason = "", [], [], None

    # Each of these begins to write when it is called, not when it is awaited: a caller that is cancelled has ended its
    # turns all the same.

    def complete(self) -> Awaitable[None]:
        """Durable when it has been awaited."""
        if self.finish_reason == CONTENT_FILTER:
            return self._end_early(ReplyState.STOPPED, CONTENT_FILTER, durable=True)
        return self._end(ReplyState.COMPLETE, durable=True)

    def stop(self, reason: str) -> Awaitable[None]:
        """The reader stopped or went away: what was shown is the reply."""
        if self.finish_reason is not None:
            return self.complete()  # all of it had been shown
        return self._end_early(ReplyState.STOPPED, reason)

    def fail(self, reason: str) -> Awaitable[None]:
        return self._end_early(ReplyState.FAILED, reason)

    def cut(self) -> Awaitable[None]:
        """The server ended before the reply did: nobody votes on it, nothing learns from it."""
        return self._end_early(ReplyState.INCOMPLETE, "drained")

    def _trim(self) -> None:
        """Drop tokens whose text was not shown: the bytes of half a character, or what a stop string held back."""
        decode, count = self._services.prompts.decode, len(self.token_ids)
        for kept in range(count, max(count - _TRIM_TOKENS, 0) - 1, -1):
            if self.text.startswith(storable(decode(self.token_ids[:kept]))):
                del self.token_ids[kept:], self.logprobs[kept:]
                return
        log.warning("reply %s: its tokens do not spell its text; kept as sampled", self.reply_id)

    def interrupt(self) -> None:
        """The server is about to end: cancel the task that writes this turn's body."""
        self.interrupted = True
        if self.task is not None:
            self.task.cancel()

    def _end_early(self, state: ReplyState, reason: str, *, durable: bool = False) -> Awaitable[None]:
        metrics.stream_aborts_total.labels(reason).inc()
        self._trim()
        return self._end(state, durable=durable)

    def _end(self, state: ReplyState, *, durable: bool = False) -> Awaitable[None]:
        if self._ended:
            return asyncio.sleep(0)
        self._ended = True
        # In a task of its own: the request's task may be cancelled while this is under way, and once more.
        return asyncio.shield(self._services.background(self._write_end_and_tell(state, durable=durable)))

    async def _write_end_and_tell(self, state: ReplyState, *, durable: bool) -> None:
        try:
            await self._write_end(state, durable=durable)
            self.ended_as = state
        finally:
            self.over.set()

    async def _write_end(self, state: ReplyState, *, durable: bool) -> None:
        """durable: there is a [DONE] to say, but not for what is not durable yet."""
        services = self._services
        mixed = services.residency.underway.leave(self.version, self._epoch)
        services.streams[self.question.user_id] -= 1
        if services.streams[self.question.user_id] <= 0:
            del services.streams[self.question.user_id]
        services.live.discard(self)
        metrics.streams_active.dec()
        self._measure(state)
        if self._begun is not None:
            await asyncio.wait({self._begun})
            if self._begun.exception() is not None:
                # Perhaps there is no reply to finish; perhaps the database was only slow, and it is there after all.
                services.background(self._finish_later(ReplyState.FAILED, mixed))
                return
        try:
            await self._finish(state, mixed)
        except UnknownTarget:  # its user was erased while it was written
            if durable:
                raise
        except StorageError:
            services.background(self._finish_later(state, mixed))
            if durable:
                raise

    async def _finish_later(self, state: ReplyState, mixed: Sequence[str] | None) -> None:
        """Until the database takes it, or the server ends: nothing else would say that the reply has ended."""
        for pause_seconds in chain(_FINISH_RETRIES_SECONDS, repeat(_FINISH_RETRIES_SECONDS[-1])):
            await self._services.pause(pause_seconds)
            try:
                await self._finish(state, mixed)
                return
            except StorageError as error:
                if self._services.draining:
                    log.warning("reply %s: the database did not take that it is %s: %s", self.reply_id, state, error)
                    return
            except FeedbackError:
                return  # it never began, or has ended otherwise

    async def _finish(self, state: ReplyState, mixed: Sequence[str] | None) -> None:
        finished_at, text = now(), self.text
        token_ids, logprobs = list(self.token_ids), list(self.logprobs)
        verdict = self._screen.verdict if self._screen else None

        def finish(connection: Connection) -> None:
            finish_reply(
                connection,
                self.reply_id,
                state=state,
                text=text,
                token_ids=token_ids,
                logprobs=logprobs,
                finish_reason=self.finish_reason,
                first_token_at=self._first_at,
                finished_at=finished_at,
                mixed_versions=mixed,
                safety_flag=verdict.source if verdict else None,
                safety=verdict.as_dict() if verdict else None,
            )

        await self._services.write_statements(finish)

    def _measure(self, state: ReplyState) -> None:
        track, tokens = self.track, len(self.token_ids)
        metrics.replies_total.labels(track, state.value).inc()
        metrics.refusals_total.labels(track).inc(refuses(self.text))
        metrics.request_duration_seconds.labels(track).observe(time.perf_counter() - self._asked_at)
        metrics.reply_tokens.labels(track).observe(tokens)
        if tokens > 1:
            metrics.time_per_output_token_seconds.labels(track).observe((self._last - self._first) / (tokens - 1))
        metrics.tokens_total.labels("prompt").inc(len(self.question.prompt_token_ids))
        metrics.tokens_total.labels("cached").inc(self.cached_tokens)
        metrics.tokens_total.labels("reply").inc(tokens)


def begin(services: Services, turns: Sequence[Turn]) -> None:
    """Hand their replies to the ledger, all or none; `chunks` waits for that before anything is shown."""
    rows, title = [turn.row() for turn in turns], title_of(turns[0].question.messages)

    def append(connection: Connection) -> None:
        for row in rows:
            begin_reply(connection, row, title)

    durable = services.background(services.write_statements(append))
    for turn in turns:
        turn.begun_by(durable)


def title_of(messages: Sequence[dict[str, Any]]) -> str:
    """The first thing that the user said, on one line."""
    for message in messages:
        if message["role"] == "user":
            words = " ".join(str(message["content"]).split())
            return words if len(words) <= _TITLE_CHARS else words[: _TITLE_CHARS - 1] + "…"
    return ""


def check_room(services: Services, user_id: str, replies: int = 1) -> None:
    """Raises ApiError when the server drains, is not ready, or has too much to do already."""
    if services.draining:
        raise ApiError(503, "the server is about to stop", code="draining", headers={"retry-after": "5"})
    if not services.residency.serving or not services.engine.healthy:
        raise ApiError(503, "no policy is ready to answer yet", code="not_ready", headers={"retry-after": "2"})
    if services.streams.total() + replies > services.settings.max_streams:
        raise ApiError(503, "too many replies are being written", code="overloaded", headers={"retry-after": "1"})
    if services.streams[user_id] + replies > services.settings.max_streams_per_user:
        limit = services.settings.max_streams_per_user
        raise ApiError(
            429, f"at most {limit} replies at once for one user", code="too_many_streams", headers={"retry-after": "1"}
        )
