"""From a request to the question that the model gets: sampling, messages, and the conversation that it continues."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from feedback.errors import UnknownTarget
from feedback.ids import new_id
from feedback.samples import CONTENT_FILTER
from feedback.schema import SHADOW, Comparison, Conversation, Reply, ReplyState, TargetKind
from feedback.verdicts import effective_vote
from server import metrics
from server.chat_request import ChatRequest
from server.engine import Sampling
from server.errors import ApiError, RequestRefused
from server.identity import Identity
from server.safety.config import Action, Stage
from server.services import Services
from server.settings import Settings
from server.system_prompts import Chosen, InUse, has_prompt, with_prompt
from server.turn import Question

_SHORT_CHARS = 1_000  # of all messages: rendered in less time than it takes to hand them to a thread


@dataclass(frozen=True)
class Asked:
    """A request in its place in the log, without the system prompt that the operator may put before it."""

    user_id: str
    request: ChatRequest
    messages: list[dict[str, Any]]
    place: Place
    prompts: InUse | None  # None: there is none in use, or the request has its own

    @property
    def prompt(self) -> Chosen | None:
        return self.prompts.of(self.user_id) if self.prompts else None


async def read_question(services: Services, identity: Identity, request: ChatRequest) -> Asked:
    """Raises ApiError for what is not let through, UnknownTarget for someone else's conversation or reply."""
    user_id = identity.user_id
    await _check_input(services, request)
    messages = [message.plain() for message in request.messages]
    place = Place(request.conversation_id or new_id("conv"))
    if request.conversation_id or request.regenerate_of or request.parent_id:
        place = await services.read(lambda session: find_place(session, user_id, request))
    if request.regenerate_of is None and _continues(messages):
        messages = [*place.history, *messages]
    prompts = None if has_prompt(messages) else await services.prompt_book.use_for(identity.key_id)
    return Asked(user_id, request, messages, place, prompts)


async def _check_input(services: Services, request: ChatRequest) -> None:
    """What the user says, and what their tools say. Not the system's words, which may well name what is forbidden."""
    if services.safety is None:
        return
    said = "\n".join(str(m.plain()["content"]) for m in request.messages if m.role in ("user", "tool"))
    flags = await services.safety.flags_of(said, Stage.INPUT)
    for source in {flag.source for flag in flags}:
        metrics.safety_flags_total.labels(metrics.NO_TRACK, Stage.INPUT.value, source).inc()
    if any(flag.action is Action.BLOCK for flag in flags):
        raise ApiError(400, "the safety filter does not let this through", param="messages", code=CONTENT_FILTER)


async def question_of(services: Services, asked: Asked, prompt: Chosen | None) -> Question:
    """Raises ApiError for what the model cannot take."""
    request, place = asked.request, asked.place
    messages = with_prompt(asked.messages, prompt)
    tools = request.offered
    if (tools or any(message.has_tools for message in request.messages)) and not services.prompts.has_tools:
        raise ApiError(
            422,
            f"the chat template of {services.settings.model_name} has no tools, or none that this server can read "
            "from a reply (<tool_call>, as Hermes and Qwen models write them): send none",
            param="tools" if tools else "messages",
            code="unsupported",
        )
    if not tools and sum(len(message["content"] or "") for message in messages) <= _SHORT_CHARS:
        prompt_token_ids = services.prompts.render(messages, tools)
    else:
        prompt_token_ids = await asyncio.to_thread(services.prompts.render, messages, tools)
    sampling = sampling_of(services.settings, request, len(prompt_token_ids), services.engine.max_model_len)
    try:
        await services.engine.check(sampling)
    except RequestRefused as error:
        raise ApiError(400, f"response_format: {error}", param="response_format", code="invalid_value") from error
    return Question(
        user_id=asked.user_id,
        messages=messages,
        prompt_token_ids=prompt_token_ids,
        sampling=sampling,
        conversation_id=place.conversation_id,
        parent_id=place.parent_id,
        regenerate_of=request.regenerate_of,
        tools=tools,
        prompt=prompt,
    )


def sampling_of(settings: Settings, request: ChatRequest, prompt_tokens: int, max_model_len: int) -> Sampling:
    room = max_model_len - prompt_tokens
    if room < 1:
        raise ApiError(
            400,
            f"the messages are {prompt_tokens} tokens; this model takes {max_model_len} together with the reply",
            param="messages",
            code="context_length_exceeded",
        )
    asked = request.max_completion_tokens or request.max_tokens
    if asked is not None and asked > settings.max_tokens:
        raise ApiError(400, f"max_tokens: at most {settings.max_tokens}", param="max_tokens", code="invalid_value")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    temperature = settings.default_temperature if request.temperature is None else request.temperature
    return Sampling(
        max_tokens=min(asked or settings.default_max_tokens, room),
        temperature=temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        stop=tuple(stop),
        seed=None if request.seed is None else request.seed % 2**63,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        json_schema=request.response_format.constraint() if request.response_format else None,
        top_logprobs=request.top_logprobs or 0,
    )


@dataclass(frozen=True)
class Place:
    """Where in the log a new reply stands."""

    conversation_id: str
    parent_id: str | None = None
    history: tuple[dict[str, Any], ...] = ()  # as the user last saw it


def _continues(messages: list[dict[str, Any]]) -> bool:
    """One message of the user alone: the client leaves the history to the server."""
    return len(messages) == 1 and messages[0]["role"] == "user"


def find_place(session: Session, user_id: str, request: ChatRequest) -> Place:
    conversation_id, parent_id = request.conversation_id, request.parent_id
    if request.regenerate_of is not None:
        reply = _own_reply(session, user_id, conversation_id, request.regenerate_of)
        return Place(reply.conversation_id, reply.parent_id)
    if parent_id is not None and parent_id != conversation_id:
        return _after(_own_reply(session, user_id, conversation_id, parent_id))
    assert conversation_id is not None
    if not _check_conversation(session, user_id, conversation_id) or parent_id is not None:
        return Place(conversation_id)
    last = _last_seen(session, conversation_id)
    return Place(conversation_id) if last is None else _after(last)


def _after(reply: Reply) -> Place:
    # The prompt of then goes: the one of now is put in its place.
    said = reply.messages if reply.prompt_version is None else reply.messages[1:]
    if not reply.text:  # an answer that never came takes its question with it
        return Place(reply.conversation_id, reply.id, (*said[:-1],))
    return Place(reply.conversation_id, reply.id, (*said, {"role": "assistant", "content": reply.text}))


def _own_reply(session: Session, user_id: str, conversation_id: str | None, reply_id: str) -> Reply:
    reply = session.get(Reply, reply_id)
    if (
        reply is None
        or reply.source == SHADOW
        or reply.user_id != user_id
        or conversation_id not in (None, reply.conversation_id)
    ):
        raise UnknownTarget(f"there is no reply {reply_id}")
    _check_conversation(session, user_id, reply.conversation_id)
    return reply


def _check_conversation(session: Session, user_id: str, conversation_id: str) -> bool:
    """False when there is none yet: a client may name its own."""
    found = session.get(Conversation, conversation_id)
    if found is None:
        return False
    if found.user_id != user_id or found.deleted_at is not None:
        raise UnknownTarget(f"there is no conversation {conversation_id}")
    return True


def _last_seen(session: Session, conversation_id: str) -> Reply | None:
    """The newest reply with a text; of a comparison the side that was preferred, else the left."""
    last = session.exec(
        select(Reply)
        .where(
            Reply.conversation_id == conversation_id,
            Reply.source != SHADOW,
            col(Reply.state).in_((ReplyState.COMPLETE.value, ReplyState.STOPPED.value)),
            Reply.text != "",
        )
        .order_by(col(Reply.created_at).desc(), col(Reply.id).desc())
        .limit(1)
    ).first()
    if last is None or last.comparison_id is None:
        return last
    comparison = session.get(Comparison, last.comparison_id)
    assert comparison is not None
    choice = session.execute(
        effective_vote.select().where(
            effective_vote.c.target_kind == TargetKind.COMPARISON.value,
            effective_vote.c.target_id == comparison.id,
        )
    ).first()
    side = comparison.right_reply_id if choice is not None and choice.choice == "right" else comparison.left_reply_id
    preferred = session.get(Reply, side)
    return preferred if preferred is not None and preferred.text else last
