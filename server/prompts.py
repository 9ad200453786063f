"""Messages to token ids: the model's own chat template, which nothing that people write can break out of.

A special token spelled in a message's text gets a space after its first character, so that the tokenizer takes it for
text; everything else is exactly what the template gives. The trainer renders by the same rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from server.errors import ApiError, BadConfiguration
from server.vocabulary import Vocabulary


class Prompts:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        if not self._tokenizer.chat_template:
            raise BadConfiguration(f"{folder} has no chat template: kudos serves chat models only")
        self._special = sorted(set(self._tokenizer.all_special_tokens), key=len, reverse=True)
        self.template_digest = hashlib.sha256(str(self._tokenizer.chat_template).encode()).hexdigest()

    def neutralise(self, text: str) -> str:
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids up to and including what opens the assistant's reply."""
        safe = [{"role": message["role"], "content": self.neutralise(message["content"])} for message in messages]
        try:
            ids = self._tokenizer.apply_chat_template(
                safe, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template refuses an order of roles by raising whatever it likes
            raise ApiError(
                422, f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        return [int(token) for token in ids]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
