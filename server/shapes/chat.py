"""Completions as OpenAI's clients know them, whole and in chunks, and comparisons, which hold two."""

from __future__ import annotations

from typing import Any, Literal

from server.shapes import Shape, shown

_MODEL = {"id": "kudos-tiny", "object": "model", "created": 1795000000, "owned_by": "kudos"}


class Model(Shape):
    model_config = shown(_MODEL)
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Shape):
    model_config = shown({"object": "list", "data": [_MODEL]})
    object: Literal["list"]
    data: list[Model]


class Likely(Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Likely):
    top_logprobs: list[Likely]


class Logprobs(Shape):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Shape):
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class Call(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Said(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[Call] | None = None


class CompletionChoice(Shape):
    index: int
    reply_id: str
    """What a vote on this choice names."""
    message: Said
    logprobs: Logprobs | None
    finish_reason: str | None
    """`stop`, `length`, `tool_calls`."""


class CachedTokens(Shape):
    cached_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 9,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_COMPLETION = {
    "id": "chatcmpl-01k9s6m1x4",
    "object": "chat.completion",
    "created": 1795000000,
    "model": "kudos-tiny",
    "system_fingerprint": "v0-0a1b2c3d",
    "conversation_id": "conv-01k9s6m1x0",
    "choices": [
        {
            "index": 0,
            "reply_id": "chatcmpl-01k9s6m1x4",
            "message": {"role": "assistant", "content": "Hello! How can I help you?", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}


class HiddenCompletion(Shape):
    """One side of a comparison: its policy is hidden until the choice."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    conversation_id: str
    """Goes on with `conversation_id` in the next request, and one message alone."""
    choices: list[CompletionChoice]
    usage: Usage


class Completion(HiddenCompletion):
    model_config = shown(_COMPLETION)
    system_fingerprint: str
    """The version of the policy that wrote it."""


class Delta(Shape):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(Shape):
    index: int
    reply_id: str
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: str | None


class Chunk(Shape):
    """One event's data. The first has the role, a choice's last one its finish_reason."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None = None
    conversation_id: str
    comparison_id: str | None = None
    side: Literal["left", "right"] | None = None
    choices: list[ChunkChoice]
    usage: Usage | None = None


_HIDDEN = {name: value for name, value in _COMPLETION.items() if name != "system_fingerprint"}


class Comparison(Shape):
    model_config = shown(
        {
            "id": "cmp-01k9s6m1x2",
            "object": "comparison",
            "conversation_id": "conv-01k9s6m1x0",
            "left": _HIDDEN,
            "right": {**_HIDDEN, "id": "chatcmpl-01k9s6m1x5"},
        }
    )
    id: str
    object: Literal["comparison"]
    conversation_id: str
    left: HiddenCompletion
    right: HiddenCompletion


_OPENING = (
    'data: {"id":"chatcmpl-01k9s6m1x4","object":"chat.completion.chunk","created":1795000000,"model":"kudos-tiny",'
)
_FIRST = '"choices":[{"index":0,"reply_id":"chatcmpl-01k9s6m1x4","delta":'
_GOES_ON = ',"logprobs":null,"finish_reason":null}]}\n\n'


def _events(extra: str) -> str:
    opening = _OPENING + extra + _FIRST
    return (
        f'{opening}{{"role":"assistant","content":""}}{_GOES_ON}'
        f'{opening}{{"content":"Hello!"}}{_GOES_ON}'
        f'{opening}{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


STREAM = _events('"system_fingerprint":"v0-0a1b2c3d","conversation_id":"conv-01k9s6m1x0",')
SIDES_STREAM = _events('"conversation_id":"conv-01k9s6m1x0","comparison_id":"cmp-01k9s6m1x2","side":"left",')
