"""What goes over the wire: OpenAI's chat requests and chunks, with kudos' few optional fields.

Chunks are spelled by hand around the one string that changes, because a stream sends one per token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.requests import Request

from server.errors import ApiError, error_body
from server.settings import Settings

T = TypeVar("T", bound=BaseModel)

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"

_MAX_SCHEMA_BYTES = 16 << 10
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(_Body):
    type: Literal["text"]
    text: str


class Called(_Body):
    name: Annotated[str, Field(pattern=_NAME)]
    arguments: str


class ToolCall(_Body):
    id: str
    type: Literal["function"] = "function"
    function: Called


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is needed, but for an assistant's message that has tool_calls")
        return self

    @property
    def has_tools(self) -> bool:
        return self.role == "tool" or bool(self.tool_calls)

    def plain(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        role = "system" if self.role == "developer" else self.role
        plain: dict[str, Any] = {"role": role, "content": content}
        if self.tool_calls:
            plain["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        return plain


class Function(_Body):
    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Body):
    type: Literal["function"]
    function: Function


class StreamOptions(_Body):
    include_usage: bool = False


class JsonSchema(_Body):
    name: Annotated[str, Field(pattern=_NAME)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def constraint(self) -> dict[str, Any] | None:
        """The JSON Schema that the reply is held to; None for text. Raises ApiError where it is missing or too long."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            raise ApiError(
                422,
                "response_format.json_schema: needed with the type json_schema",
                param="response_format.json_schema",
                code="invalid_value",
            )
        if len(orjson.dumps(self.json_schema.schema_)) > _MAX_SCHEMA_BYTES:
            raise ApiError(
                422,
                f"response_format.json_schema.schema: at most {_MAX_SCHEMA_BYTES} bytes; shorten or split it",
                param="response_format.json_schema.schema",
                code="invalid_value",
            )
        return self.json_schema.schema_


class ChatRequest(_Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    conversation_id: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")] | None = None
    regenerate_of: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    # Known to OpenAI's API and not to this server: an error beats a reply that ignored them.
    functions: list[Any] | None = None
    logit_bias: dict[str, Any] | None = None

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model may call in its reply."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @field_validator("stop")
    @classmethod
    def _stops_are_short(cls, value: str | list[str] | None) -> str | list[str] | None:
        for stop in [value] if isinstance(value, str) else value or []:
            if not 0 < len(stop) <= 256:
                raise ValueError("a stop string has 1 to 256 characters")
        return value

    def check(self, settings: Settings) -> None:
        """Raises ApiError for what this server does not do, and for fields that contradict each other."""
        self.refuse("functions", "logit_bias", by="this server")
        if self.tool_choice not in (None, "auto", "none"):
            raise ApiError(
                422, 'tool_choice: this server takes "auto" and "none"', param="tool_choice", code="unsupported"
            )
        if self.offered and self.response_format is not None and self.response_format.type != "text":
            raise ApiError(
                422,
                "tools: not together with a response_format, which forbids calls",
                param="tools",
                code="unsupported",
            )
        if self.choices > settings.max_choices:
            raise ApiError(400, f"n: at most {settings.max_choices}", param="n", code="invalid_value")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(422, "top_logprobs: needs logprobs to be true", param="top_logprobs", code="invalid_value")
        if self.model is not None and self.model not in (settings.model_name, "kudos"):
            raise ApiError(
                404,
                f"the model {self.model[:100]!r} does not exist; this server has {settings.model_name!r}",
                param="model",
                code="model_not_found",
            )
        if len(self.messages) > settings.max_messages:
            raise ApiError(422, f"messages: at most {settings.max_messages}", param="messages")

    def refuse(self, *params: str, by: str) -> None:
        asked = {
            "n": self.choices > 1,
            "logprobs": bool(self.logprobs),
            "tools": bool(self.tools),
            "functions": bool(self.functions),
            "logit_bias": bool(self.logit_bias),
            "response_format": self.response_format is not None and self.response_format.type != "text",
        }
        for param in params:
            if asked[param]:
                raise ApiError(400, f"{param}: {by} does not do that yet", param=param, code="unsupported")


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
