"""What goes over the wire: bodies in, events and OpenAI's chunks out.

Chunks are spelled by hand around the one string that changes, because a stream sends one per token.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from server.errors import ApiError, error_body

T = TypeVar("T", bound=BaseModel)

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"

_MAX_FIELDS = 1000  # each that is not known is an error to be told apart from the others
_MAX_DEPTH = 128  # what reads and writes JSON after us recurses, and ends at some 250
# An escaped NUL: after an even number of backslashes, which are escaped ones. Raw ones are no JSON.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


async def read_json(request: Request, limit_bytes: int) -> Any:
    """The body as JSON, whose texts hold no NUL.

    Raises ApiError: 413 beyond the limit, without reading on; 415 where it is said to be something else; 422 when it is
    not JSON, or nested too deep.
    """
    _check_type(request.headers.get("content-type"))
    try:
        if int(request.headers.get("content-length", "0")) > limit_bytes:
            raise _too_large(limit_bytes)
    except ValueError:
        raise ApiError(400, "content-length is not a number", code="invalid_value") from None
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
    except ClientDisconnect:
        raise ApiError(499, "the client went away before its request was whole", code="disconnected") from None
    if b"\\u0000" in body and _NUL.search(body):
        raise ApiError(422, "the body has a NUL character, which no text holds: leave it out", code="invalid_json")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(422, f"the body is not JSON: {error}", code="invalid_json") from None
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH and _is_deep(value):
        raise ApiError(422, f"the body is nested more than {_MAX_DEPTH} deep", code="invalid_json")
    return value


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit_bytes} bytes", code="body_too_large")


async def read_optional(request: Request, kind: type[T], limit_bytes: int) -> T:
    """The body, or what the kind has by default where there is none. Raises ApiError as `read_json` and `parse` do."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return parse(kind, {})
    return parse(kind, await read_json(request, limit_bytes))


def _check_type(said: str | None) -> None:
    """A body that says nothing of itself is taken for JSON."""
    if said is None:
        return
    kind = said.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            415,
            f"content-type: this takes application/json, not {kind[:100]!r}",
            param="content-type",
            code="unsupported_media_type",
        )


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def parse(kind: type[T], body: Any) -> T:
    """Raises ApiError 422 that names the field and what is wrong with it."""
    if not isinstance(body, dict):
        raise ApiError(422, "the body is not a JSON object", code="invalid_value")
    if len(body) > _MAX_FIELDS:
        raise ApiError(422, f"the body has {len(body)} fields, and nothing here has so many", code="invalid_value")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        fields = [_field(body, each["loc"], missing=each["type"] == "missing") for each in errors]
        # Where a field may be of several types, the type that was meant is the one whose rule is broken, or broken
        # furthest in.
        told = max(
            (at for at, field in enumerate(fields) if field[:1] == fields[0][:1]),
            key=lambda at: (not errors[at]["type"].endswith("_type"), len(fields[at])),
        )
        param = ".".join(map(str, fields[told])) or None
        message = errors[told]["msg"].removeprefix("Value error, ")
        raise ApiError(422, f"{param or 'body'}: {message}", param=param, code="invalid_value") from None


def _field(body: Any, location: Sequence[str | int], *, missing: bool) -> list[str | int]:
    """Pydantic's location without the types that it tried, which are not in the body."""
    field: list[str | int] = []
    for part in location[:-1] if missing else location:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            continue
        field.append(part)
    return [*field, *location[-1:]] if missing else field


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
