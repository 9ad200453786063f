"""OpenAI's chat request, with kudos' few optional fields: what it may hold, and what this server does of it.

Bounds are checked as it is parsed; `check` does what takes the settings, or several fields at once. A list without a
bound of its own fails with its first fault: to gather half a million of them stops every stream for seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema

from server.errors import ApiError
from server.settings import Settings

_MAX_SCHEMA_BYTES = 16 << 10
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
# To JSON 64.0 is a whole number, and what has more than 64 bits is read as a float.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, use_attribute_docstrings=True)


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
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["content"],
                    "properties": {"content": {"type": ["string", "array"]}, "tool_calls": {"type": "null"}},
                },
                {
                    "required": ["tool_calls"],
                    "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
                },
            ]
        }
    )
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
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
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}}},
                {"required": ["json_schema"], "properties": {"json_schema": {"type": "object"}}},
            ]
        }
    )
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def constraint(self) -> dict[str, Any] | None:
        """The JSON Schema that the reply is held to; None for text. Raises ApiError where it cannot be taken."""
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
        if _has_pattern(self.json_schema.schema_):
            raise ApiError(
                422,
                "response_format.json_schema.schema: patterns are not taken; use an enum or a format",
                param="response_format.json_schema.schema",
                code="unsupported",
            )
        return self.json_schema.schema_


def _has_pattern(schema: Any) -> bool:
    """Whether there is a regular expression in it. A short one that is made to hurt stops the event loop for seconds,
    and every stream with it, while the engine turns it into a grammar."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("pattern"), str) or isinstance(node.get("patternProperties"), dict):
                return True
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return False


def check_model(name: str, settings: Settings) -> None:
    """Raises ApiError 404 where this is not the one model; `kudos` always is."""
    if name not in (settings.model_name, "kudos"):
        raise ApiError(
            404,
            f"the model {name[:100]!r} does not exist; this server has {settings.model_name!r}",
            param="model",
            code="model_not_found",
        )


class ChatRequest(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Hello!"}]},
                {"messages": [{"role": "user", "content": "Hello!"}], "stream": True, "max_tokens": 64},
            ],
            "anyOf": [
                {"properties": {"top_logprobs": {"type": "null"}}},
                {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
            ],
        }
    )
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, _WHOLE] | None = None
    """Any whole number; of large ones the lowest 63 bits count."""
    conversation_id: _Id | None = None
    """The conversation that this goes on with; one message alone then leaves the history to the server."""
    regenerate_of: _Id | None = None
    """A reply to write again; the new one stands beside it in the conversation."""
    parent_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """What the message follows: a reply, or the conversation's own id for its beginning. Unset: the newest reply."""
    may_compare: bool = False
    """The answer may be two to choose between, as a comparison's, at the rate that the server sets."""
    logprobs: bool | None = None
    """Tell each token of the reply, with its logprob and its exact bytes."""
    top_logprobs: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = None
    """With `logprobs`: so many of the most likely tokens at each position."""
    n: Annotated[int, Field(ge=1, le=128), _WHOLE] | None = None
    """Replies to write; the server's setting may allow fewer. Each has its own `reply_id`, to vote on."""
    response_format: ResponseFormat | None = None
    """What the reply is held to. The model is not told: say it in the messages as well."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    """What the model may call, where its chat template has tools."""
    tool_choice: Annotated[
        str | dict[str, Any] | None, WithJsonSchema({"enum": ["auto", "none", None], "title": "Tool Choice"})
    ] = None
    """To force a call is refused."""
    # Known to OpenAI's API and not to this server: an error beats a reply that ignored them.
    functions: SkipJsonSchema[list[Any] | None] = None
    logit_bias: SkipJsonSchema[dict[str, Any] | None] = None

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
    def is_plain(self) -> bool:
        """A new message and nothing else: what a comparison can answer as well."""
        return not (self.regenerate_of or self.choices > 1 or self.logprobs or self.tools or self.response_format)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

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
        if self.parent_id is not None and self.regenerate_of is not None:
            raise ApiError(
                400,
                "parent_id: not together with regenerate_of, which has the same parent",
                param="parent_id",
                code="invalid_value",
            )
        if self.choices > settings.max_choices:
            raise ApiError(400, f"n: at most {settings.max_choices}", param="n", code="invalid_value")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(422, "top_logprobs: needs logprobs to be true", param="top_logprobs", code="invalid_value")
        if self.model is not None:
            check_model(self.model, settings)
        if len(self.messages) > settings.max_messages:
            raise ApiError(422, f"messages: at most {settings.max_messages}", param="messages", code="invalid_value")

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
