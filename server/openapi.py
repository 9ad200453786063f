"""The contract as OpenAPI has it: what each route says of itself, and what is true of all, added once.

A route says what is its own: a docstring, its shapes, and the errors that only it has. To each are added, by what it
is: who may call it (by its tag), the errors that any such route can answer with, and the headers of its responses. So
a new route is described by a tag, a docstring and its shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.identity import Scope
from server.shapes.chat import Chunk

ANYONE = None

Responses = dict[int | str, dict[str, Any]]
"""What a route says of its own responses, by status. An error needs its description alone."""


@dataclass(frozen=True)
class Tag:
    scope: Scope | None
    about: str


TAGS = {
    "chat": Tag(Scope.CHAT, "Replies and comparisons, as OpenAI's clients ask for them."),
    "votes": Tag(Scope.FEEDBACK, "What people say of replies: durable when it is acknowledged."),
    "conversations": Tag(Scope.CHAT, "One's own conversations and replies."),
    "me": Tag(Scope.CHAT, "One's own data: what it taught, a copy of it, its end."),
    "operators": Tag(Scope.OPERATOR, "Policies, rollouts and training runs."),
    "metrics": Tag(Scope.METRICS, "For Prometheus."),
    "health": Tag(ANYONE, "For load balancers."),
}

ERRORS = {
    400: "Not HTTP, or something that this server does not do (`unsupported`) or cannot (`context_length_exceeded`)",
    401: "No key, or one that is not known or was revoked",
    403: "The key lacks the scope, or a page of another site asked",
    404: "There is no such thing, or it is someone else's: which of the two is not told",
    409: "Its state does not allow this",
    410: "This user was erased, and the id is not used again",
    413: "The body is larger than KUDOS_MAX_BODY_BYTES",
    415: "The body is said to be something other than JSON",
    422: "A field, a header or the query is not what it must be; `param` names it",
    429: "Too many requests, tokens or replies at once; `retry-after` says when to try again",
    431: "The head of the request is larger than 64 KiB",
    500: "A fault of the server; the message names the request",
    503: "Not now: starting, stopping, overloaded, or the database is busy",
    507: "The database has no space left",
}
"""Each in the one shape; see `components.schemas.Error`."""

_EVERY_ROUTE = {400, 431, 500}
_WITH_IDENTITY = {401, 403, 410, 422, 503}
_WITH_BODY = {413, 415, 422}
_WRITING = {507}
_WITH_ID = {404}
_RETRY = {429, 503}

REFUSALS: Responses = {
    404: {"description": "There is no such model, conversation or reply, or it is someone else's"},
    429: {"description": ERRORS[429]},
}
"""What asking for a reply can come to, besides what any request can."""

_ERROR = {
    "type": "object",
    "description": "What went wrong, in the one shape that every error has, in a response and in a stream.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "For people: what is wrong, and the mend."},
                "type": {"type": "string", "description": "The kind, by status."},
                "param": {"type": ["string", "null"], "description": "The field that is at fault."},
                "code": {"type": ["string", "null"], "description": "For programs: does not change."},
            },
        }
    },
    "examples": [
        {
            "error": {
                "message": "temperature: Input should be less than or equal to 2",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "invalid_value",
            }
        }
    ],
}
_USER = {
    "name": "X-Kudos-User",
    "in": "header",
    "description": "For keys with the scope on_behalf: which of its end users this is for.",
    "schema": {"type": "string", "pattern": r"^[\x21-\x7e]{1,128}$"},
    "example": "alice",
}
_HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {
        "description": "The one that the client sent, or a new one; it is in the server's log.",
        "schema": {"type": "string"},
    },
    "retry-after": {"description": "Seconds.", "schema": {"type": "string"}},
    **{
        f"x-ratelimit-{what}-{unit}": {
            "description": f"Where {unit} a minute are limited: {meaning}.",
            "schema": {"type": "string"},
        }
        for unit in ("requests", "tokens")
        for what, meaning in (
            ("limit", "how many"),
            ("remaining", "how many are left"),
            ("reset", "how long until all are back, as in 12.500s"),
        )
    },
}
_LIMITED = [name for name in _HEADERS if name.startswith("x-ratelimit")]
_SECURITY = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key of `kudos key create`; each has scopes."},
    "browser": {
        "type": "apiKey",
        "in": "cookie",
        "name": "kudos_user",
        "description": "On loopback alone: the page's own users. Has chat, feedback and metrics.",
    },
}


def body_of(kind: type[BaseModel], *, required: bool = True, refused: Iterable[str] = ()) -> dict[str, Any]:
    """For a route's `openapi_extra`, as all routes read their bodies by themselves, for a size limit and errors of one
    shape. The schema stands in one piece: FastAPI collects no definitions from there.

    refused: fields that this route does not take; they stay in the schema, since their types are checked first.
    """
    schema = kind.model_json_schema()
    for field in refused:
        schema["properties"][field]["description"] = "Not here: anything but its default is refused with 400."
    definitions = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole(definitions[node["$ref"].rpartition("/")[2]])
        return {key: whole(each) for key, each in node.items()}

    return {"requestBody": {"required": required, "content": {"application/json": {"schema": whole(schema)}}}}


def stream_of(example: str) -> dict[str, Any]:
    """Of a route's 200, the part that is there for requests with `stream`."""
    said = {"anyOf": [{"$ref": f"#/components/schemas/{kind}"} for kind in ("Chunk", "Error")]}
    data = {
        "description": "Chunks; in the end [DONE], or after a failure an Error.",
        "anyOf": [
            {"type": "string", "contentMediaType": "application/json", "contentSchema": said},
            {"const": "[DONE]"},
        ],
    }
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    return {
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _LIMITED},
        "content": {"text/event-stream": {"itemSchema": event, "example": example}},
    }


def link(operation: str, **parameters: str) -> dict[str, Any]:
    """For the `links` of a response: what one can do next, and where that finds its parameters, as JSON pointers."""
    return {
        "operationId": operation,
        "parameters": {name: f"$response.body#/{pointer}" for name, pointer in parameters.items()},
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description; for `app.openapi`."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title,
            version=app.version,
            summary="A chat server that learns from its users.",
            description="OpenAI's chat API, votes on what it says, and the rollout of what was learned from them.",
            routes=app.routes,
            tags=[{"name": name, "description": _about(tag)} for name, tag in TAGS.items()],
        )
        components = described.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of a 422, which is not ours
            schemas.pop(unused, None)
        schemas |= models_json_schema([(Chunk, "serialization")], ref_template="#/components/schemas/{model}")[1][
            "$defs"
        ]
        schemas["Error"] = _ERROR
        components["securitySchemes"] = _SECURITY
        components["parameters"] = {"user": _USER}
        components["headers"] = _HEADERS
        components["responses"] = {str(status): _error_response(status, reason) for status, reason in ERRORS.items()}
        for path, method, operation in operations(described):
            _complete(path, method, operation)
        app.openapi_schema = described
    return app.openapi_schema


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _about(tag: Tag) -> str:
    return f"{tag.about} Open to anyone." if tag.scope is ANYONE else f"{tag.about} Needs the scope {tag.scope}."


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    if operation.get("description"):
        operation["description"] = inspect.cleandoc(operation["description"])
        operation["summary"] = operation["description"].partition("\n\n")[0].partition(". ")[0].rstrip(".")
    scope = next((TAGS[tag].scope for tag in operation.get("tags", ()) if tag in TAGS), Scope.OPERATOR)
    statuses = set(_EVERY_ROUTE)
    if scope is ANYONE:
        operation["security"] = []
    else:
        statuses |= _WITH_IDENTITY
        operation["security"] = [{"key": [scope]}]
        if scope is not Scope.OPERATOR:
            operation["security"].append({"browser": []})
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/user"})
    if "requestBody" in operation:
        statuses |= _WITH_BODY
    if "{" in path:
        statuses |= _WITH_ID
    if method != "GET":
        statuses |= _WRITING
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status in statuses - {int(known) for known in responses}:
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    for status, response in responses.items():
        if "$ref" in response:
            continue
        if int(status) >= 400 and "content" not in response:
            response.update(_error_response(int(status), response["description"]))
        response.setdefault("headers", {})["x-request-id"] = {"$ref": "#/components/headers/x-request-id"}
    operation["responses"] = dict(sorted(responses.items()))


def _error_response(status: int, reason: str) -> dict[str, Any]:
    names = ["x-request-id", *(["retry-after"] if status in _RETRY else [])]
    return {
        "description": f"{reason}.",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
