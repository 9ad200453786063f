"""What goes over the wire: bodies in, events and OpenAI's chunks out.

Chunks are spelled by hand around the one string that changes, because a stream sends one per token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from server.errors import ApiError, error_body

T = TypeVar("T", bound=BaseModel)

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"


async def read_json(request: Request, limit_bytes: int) -> Any:
    """The body as JSON. 413 beyond the limit, without reading on; 422 when it is not JSON, or nested too deep."""
    too_large = ApiError(413, f"the body is larger than {limit_bytes} bytes", code="body_too_large")
    try:
        if int(request.headers.get("content-length", "0")) > limit_bytes:
            raise too_large
    except ValueError:
        raise ApiError(400, "content-length is not a number") from None
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise too_large
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(422, f"the body is not JSON: {error}", code="invalid_json") from None


def parse(kind: type[T], body: Any) -> T:
    """Raises ApiError 422 that names the field and what is wrong with it."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise ApiError(422, f"{param or 'body'}: {first['msg']}", param=param, code="invalid_value") from None


def sse(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    return sse(error_body(status, message, code=code))


_GOES_ON = b',"logprobs":null,"finish_reason":null}]}\n\n'


class ChunkWriter:
    """The chunks of one reply. `extra` stands in every chunk: conversation, side and the like.

    The choices of one completion share its id, which is the first one's; `reply_id` is each one's own.
    """

    def __init__(
        self, reply_id: str, model: str, extra: Mapping[str, Any], *, index: int = 0, completion_id: str | None = None
    ) -> None:
        self._envelope: dict[str, Any] = {
            "id": completion_id or reply_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            **extra,
        }
        choice = orjson.dumps({"index": index, "reply_id": reply_id})
        self._opening = b"data: " + orjson.dumps(self._envelope)[:-1] + b',"choices":[' + choice[:-1] + b',"delta":'
        self._begun = False

    def chunk(
        self,
        text: str,
        finish_reason: str | None = None,
        logprobs: Sequence[Mapping[str, Any]] = (),
        calls: Sequence[Mapping[str, Any]] = (),
    ) -> bytes:
        """The events for what the engine said: none for half a character, several where a reply begins or ends."""
        written = b"" if self._begun else self.role()
        self._begun = True
        if text or logprobs:
            written += self.text(text, logprobs)
        if calls:
            written += self.calls(calls)
        if finish_reason is not None:
            written += self.finish(finish_reason)
        return written

    def role(self) -> bytes:
        return self._opening + b'{"role":"assistant","content":""}' + _GOES_ON

    def text(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> bytes:
        written = self._opening + b'{"content":' + orjson.dumps(text)
        if not logprobs:
            return written + b"}" + _GOES_ON
        return written + b'},"logprobs":' + orjson.dumps(logprobs_of(logprobs)) + b',"finish_reason":null}]}\n\n'

    def calls(self, calls: Sequence[Mapping[str, Any]]) -> bytes:
        numbered = [{"index": index, **call} for index, call in enumerate(calls)]
        return self._opening + b'{"tool_calls":' + orjson.dumps(numbered) + b"}" + _GOES_ON

    def finish(self, reason: str | None) -> bytes:
        return self._opening + b'{},"logprobs":null,"finish_reason":' + orjson.dumps(reason or "stop") + b"}]}\n\n"

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        return sse({**self._envelope, "choices": [], "usage": usage})


def logprobs_of(content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"content": content, "refusal": None}


def usage_of(prompt_tokens: int, reply_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": reply_tokens,
        "total_tokens": prompt_tokens + reply_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
