"""What must not be said: words, patterns and topics that an operator writes into the training config.

Latin words match whole and in any case of letters; Chinese ones match anywhere, as there is no space between words.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

_SPACED = re.compile(r"[\w'-]+(?: [\w'-]+)*", re.ASCII)


class Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...] = ()
    """Words or phrases."""

    patterns: tuple[str, ...] = ()
    """Regular expressions, in any case of letters."""

    topics: dict[str, tuple[str, ...]] = {}
    """A topic's name, and the words that give it away; however many of them are said, it is one broken rule."""

    penalty: float = Field(3.0, ge=0)
    """What each broken rule costs, in standard deviations of the reference's reward."""

    @field_validator("words")
    @classmethod
    def _not_blank(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.strip() for word in words):
            raise ValueError("a word is blank, and would be found in every reply")
        return words

    @field_validator("topics")
    @classmethod
    def _topics_with_words(cls, topics: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, words in topics.items():
            if not words or any(not word.strip() for word in words):
                raise ValueError(f"topic {name!r} needs words, none of them blank")
        return topics

    @field_validator("patterns")
    @classmethod
    def _compilable(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                found = re.compile(pattern).search("")
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
            if found is not None:
                raise ValueError(f"{pattern!r} matches an empty text, and would be found in every reply")
        return patterns

    def broken(self, text: str) -> list[str]:
        """The rules that this text breaks, by name."""
        return [
            *(f"word {word}" for word in self.words if _says(text, word)),
            *(f"pattern {pattern}" for pattern in self.patterns if re.search(pattern, text, re.IGNORECASE)),
            *(f"topic {name}" for name, words in self.topics.items() if any(_says(text, word) for word in words)),
        ]


def _says(text: str, word: str) -> bool:
    word = word.strip()
    if _SPACED.fullmatch(word):
        return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
    return word.casefold() in text.casefold()
