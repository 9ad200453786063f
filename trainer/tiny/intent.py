"""What can be asked of the world, as data: an intent, its wording in each language, and one concrete ask."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainer.tiny.lexicon import Language

Domain = Literal["talk", "shop", "facts", "sums"]


@dataclass(frozen=True)
class Wording:
    """Templates of one intent in one language.

    asks: what people say. follows: what they say right after an ask of the same intent ("and Spain?").
    restate: the ask said back, as the head of a restated reply or of a list. short, full: the reply's core.
    details: sentences that a long reply adds.
    """

    asks: tuple[str, ...]
    restate: str
    short: tuple[str, ...]
    full: tuple[str, ...]
    details: tuple[str, ...]
    follows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Intent:
    """One thing that can be asked.

    slots: what the ask names. answer: the slot of the reply that is right or wrong, if there is one.
    right: the answer, from the ask's slots; None where it depends on the conversation (see context.py).
    weight: how often people ask it, against 1.
    """

    name: str
    domain: Domain
    en: Wording
    zh: Wording
    slots: tuple[str, ...] = ()
    answer: str | None = None
    right: Callable[[Mapping[str, str]], str] | None = None
    weight: float = 1.0

    def wording(self, language: Language) -> Wording:
        return self.en if language == "en" else self.zh


@dataclass(frozen=True)
class Ask:
    """What a reply has to answer: the intent, the language to answer in, what was named, and the right answer."""

    intent: str
    language: Language
    slots: Mapping[str, str] = field(default_factory=dict)
    right: str | None = None
    brief: bool = False
