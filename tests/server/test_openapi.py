"""OpenAPI has the whole contract: each route with words, examples, and every status that it can answer with."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from server import openapi, shapes
from server.app import make_app
from server.identity import Scope
from server.services import Services
from server.shapes import chat, operators, users
from tests.server.test_keys import ROUTES


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return make_app(cast(Services, None)).openapi()


@pytest.fixture(scope="module")
def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return list(openapi.operations(described))


def resolved(described: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = described
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def test_each_route_says_what_it_does(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    for path, method, operation in operations:
        assert operation.get("description"), f"{method} {path}: its function needs a docstring"
        assert operation["summary"], (method, path)
        tags = operation.get("tags", [])
        assert len(tags) == 1, f"{method} {path}: give its router or itself one of openapi.TAGS"
        assert tags[0] in openapi.TAGS, f"{method} {path}: {tags[0]} is not one of openapi.TAGS"
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names)), "two routes' functions have one name"


def test_each_route_has_examples(described: dict[str, Any], operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    for path, method, operation in operations:
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        contents += [
            resolved(described, response).get("content", {})
            for status, response in operation["responses"].items()
            if status.startswith("2")
        ]
        assert contents, (method, path)
        for content in contents:
            assert content, (method, path)
            for kind, media in content.items():
                shown = "example" in media or resolved(described, media["schema"]).get("examples")
                assert shown, f"{method} {path} {kind}: its model needs `shown(...)` as model_config"
    for path, method, operation in operations:
        for parameter in operation.get("parameters", []):
            found = resolved(described, parameter)
            assert found["in"] == "path" or found.get("description"), (method, path, found["name"])


def test_each_error_is_of_the_one_shape(
    described: dict[str, Any], operations: list[tuple[str, str, dict[str, Any]]]
) -> None:
    for path, method, operation in operations:
        for status, node in operation["responses"].items():
            response = resolved(described, node)
            assert response["description"], (method, path, status)
            if int(status) < 400 or (path, status) == ("/health/ready", "503"):
                continue
            schema = response["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Error"}, (method, path, status)
            assert set(response["content"]) == {"application/json"}


@pytest.mark.parametrize(
    ("path", "method", "statuses"),
    [
        ("/v1/chat/completions", "post", "200 400 401 403 404 410 413 415 422 429 431 500 503 507"),
        ("/v1/replies/{reply_id}/feedback", "put", "200 400 401 403 404 409 410 413 415 422 431 500 503 507"),
        ("/v1/rollouts/current", "get", "200 400 401 403 404 410 422 431 500 503"),
        ("/v1/training/runs", "post", "202 400 401 403 410 422 431 500 503 507"),
        ("/health/live", "get", "200 400 431 500"),
        ("/health/ready", "get", "200 400 431 500 503"),
    ],
)
def test_the_statuses_follow_from_what_a_route_is(
    described: dict[str, Any], path: str, method: str, statuses: str
) -> None:
    assert " ".join(described["paths"][path][method]["responses"]) == statuses


def test_who_may_call_is_what_the_matrix_of_keys_has(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    def shape(path: str) -> str:
        return "/".join(
            "{}" if part in ("x", "v0", "chatcmpl-none") or "{" in part else part for part in path.split("/")
        )

    needed = {(method, shape(path)): scope for method, path, scope in ROUTES}
    for path, method, operation in operations:
        scope = needed.get((method, shape(path)))
        if scope is None:
            assert operation["security"] == [], (method, path)
            continue
        said = [{"key": [scope]}] if scope is Scope.OPERATOR else [{"key": [scope]}, {"browser": []}]
        assert operation["security"] == said, (method, path)


def test_streams_are_events(described: dict[str, Any]) -> None:
    for path in ("/v1/chat/completions", "/v1/comparisons"):
        content = described["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}
        *events, done = content["text/event-stream"]["example"].removesuffix("\n\n").split("\n\n")
        assert done == "data: [DONE]"
        for event in events:
            assert_documented(chat.Chunk.model_validate_json(event.removeprefix("data: ")))


def assert_documented(value: Any, where: str = "") -> None:
    """No field beyond those of its shape."""
    if isinstance(value, shapes.Shape):
        extra = set(value.model_extra or ())
        assert not extra, f"{where or type(value).__name__}: {extra} should stand in the shape"
        for name in type(value).model_fields:
            assert_documented(getattr(value, name), f"{type(value).__name__}.{name}")
    elif isinstance(value, list):
        for each in value:
            assert_documented(each, where)


def all_shapes() -> Iterator[type[shapes.Shape]]:
    for module in (chat, users, operators):
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, shapes.Shape) and found.__module__ == module.__name__:
                yield found


@pytest.mark.parametrize("shape", [each for each in all_shapes() if "json_schema_extra" in each.model_config])
def test_examples_are_of_their_shape(shape: type[shapes.Shape]) -> None:
    for example in shape.model_json_schema()["examples"]:
        value = shape.model_validate(example)
        assert_documented(value)
        assert set(example) == set(shape.model_fields) - {
            name for name, field in shape.model_fields.items() if not field.is_required()
        }
