"""What requests and responses hold, for OpenAPI: a module for each audience, an example with each shape.

Routes return plain dicts; a shape checks what goes out and writes it. It lets through what it does not know, so that a
field that was forgotten here is undocumented and not lost; tests find it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Body(BaseModel):
    """What an operator sends: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def shown(*examples: dict[str, Any]) -> ConfigDict:
    """For `model_config` of a shape that stands alone: what one looks like."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})
