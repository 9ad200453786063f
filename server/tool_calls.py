"""Tool calls in a reply, as Hermes and Qwen models write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>

Other families write them otherwise; a model whose chat template does not show these marks is not offered tools.
"""

from __future__ import annotations

from typing import Any

import orjson

from feedback.ids import new_id

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parsed(text: str) -> tuple[str, list[dict[str, Any]]]:
    """What a reply says before its calls, and the calls as OpenAI has them.

    All of the text and no call where one of them is not as it should be: better shown than lost.
    """
    said, *rest = text.split(OPEN)
    calls = []
    for written in rest:
        call = _call(written.partition(CLOSE)[0])
        if call is None:
            return text, []
        calls.append(call)
    return said, calls


def _call(written: str) -> dict[str, Any] | None:
    try:
        body = orjson.loads(written.strip())
        name, arguments = body["name"], body.get("arguments", {})
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return {"id": new_id("call"), "type": "function", "function": {"name": name, "arguments": text}}


class CallReader:
    """Reads a reply as it streams: lets through what is certainly not of a call, and has the calls at the end."""

    def __init__(self) -> None:
        self._text = ""
        self._told = 0

    def read(self, text: str) -> str:
        self._text += text
        certain = self._text.find(OPEN, self._told)
        if certain < 0:
            certain = len(self._text) - _overlap(self._text)
        return self._tell(self._text[:certain])

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        said, calls = parsed(self._text)
        return self._tell(said), calls

    def _tell(self, said: str) -> str:
        new, self._told = said[self._told :], max(self._told, len(said))
        return new


def _overlap(text: str) -> int:
    """How much of the end of the text may be the beginning of a mark."""
    return next((size for size in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:size])), 0)
