"""Messages to token ids: the model's own chat template, which nothing that people write can break out of.

A special token spelled in a message's text gets a space after its first character, so that the tokenizer takes it for
text; everything else is exactly what the template gives. The trainer renders by the same rule.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from server import tool_calls
from server.errors import ApiError, BadConfiguration
from server.vocabulary import Vocabulary


class Prompts:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        if not self._tokenizer.chat_template:
            raise BadConfiguration(f"{folder} has no chat template: kudos serves chat models only")
        self._special = sorted(set(self._tokenizer.all_special_tokens), key=len, reverse=True)
        template = str(self._tokenizer.chat_template)
        self.template_digest = hashlib.sha256(template.encode()).hexdigest()
        # Marks that are special tokens would be missing from a reply's text.
        self.has_tools = (
            re.search(r"\btools\b", template) is not None
            and tool_calls.OPEN in template
            and tool_calls.OPEN not in self._special
        )

    def neutralise(self, text: str) -> str:
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids up to and including what opens the assistant's reply."""
        safe = [{**self._safe(_with_arguments(message)), "role": message["role"]} for message in messages]
        options: dict[str, Any] = {"tools": self._safe(tools)} if tools else {}
        try:
            ids = self._tokenizer.apply_chat_template(
                safe, add_generation_prompt=True, tokenize=True, return_dict=False, **options
            )
        except Exception as error:  # a template refuses an order of roles by raising whatever it likes
            raise ApiError(
                422, f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        return [int(token) for token in ids]

    def _safe(self, value: Any) -> Any:
        """The value with every text in it neutralised."""
        if isinstance(value, str):
            return self.neutralise(value)
        if isinstance(value, Mapping):
            return {self.neutralise(key): self._safe(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._safe(each) for each in value]
        return value

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def _with_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Templates write a call's arguments as JSON themselves; OpenAI's clients send them as JSON in a string."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        with suppress(ValueError):
            function = {**function, "arguments": json.loads(function["arguments"])}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}
