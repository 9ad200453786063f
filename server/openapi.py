"""What OpenAPI says of a body that its route reads by itself, as all do, for a size limit and errors of one shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """For a route's `openapi_extra`. The schema stands in one piece: FastAPI collects no definitions from there."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole(definitions[node["$ref"].rpartition("/")[2]])
        return {key: whole(each) for key, each in node.items()}

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": whole(schema)}}}}
