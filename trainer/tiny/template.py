"""Sentence templates: one notation that can be sampled, and read back as a regular expression.

    "(what is|tell me) the capital of {country}[ please]"

Round brackets choose, square brackets may be left out, braces name a slot. The same template makes the training
text and recognises it, so that the world and its judge cannot drift apart. Not a general grammar: no recursion.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Literal:
    text: str


@dataclass(frozen=True)
class Slot:
    name: str


@dataclass(frozen=True)
class Choice:
    options: tuple["Node", ...]


@dataclass(frozen=True)
class Joined:
    parts: tuple["Node", ...]


Node = Literal | Slot | Choice | Joined


def _parse_until(text: str, start: int, closers: str) -> tuple[Node, int]:
    """Parse from `start` to one of `closers` (or the end); returns the node and the position after it."""
    options: list[Node] = []
    parts: list[Node] = []
    position = start
    while position < len(text) and text[position] not in closers:
        mark = text[position]
        if mark == "|":
            options.append(Joined(tuple(parts)))
            parts = []
            position += 1
        elif mark == "(":
            inner, position = _parse_until(text, position + 1, ")")
            parts.append(inner)
        elif mark == "[":
            inner, position = _parse_until(text, position + 1, "]")
            parts.append(Choice((inner, Joined(()))))
        elif mark == "{":
            end = text.index("}", position)
            parts.append(Slot(text[position + 1 : end]))
            position = end + 1
        else:
            found = re.compile(r"[^()\[\]{}|]+").match(text, position)
            if found is None:
                raise ValueError(f"unbalanced bracket at {position} in template {text!r}")
            parts.append(Literal(found.group()))
            position = found.end()
    options.append(Joined(tuple(parts)))
    if closers and position >= len(text):
        raise ValueError(f"template {text!r} lacks a closing {closers!r}")
    return (options[0] if len(options) == 1 else Choice(tuple(options))), position + 1


@cache
def parse(text: str) -> Node:
    return _parse_until(text, 0, "")[0]


def sample(node: Node, rng: random.Random, fill: Callable[[str], str]) -> str:
    """One random reading of the template; `fill` gives the words of a slot."""
    match node:
        case Literal(text):
            return text
        case Slot(name):
            return fill(name)
        case Choice(options):
            return sample(rng.choice(options), rng, fill)
        case Joined(parts):
            return "".join(sample(part, rng, fill) for part in parts)


def pattern(node: Node, slot: Callable[[str], str], literal: Callable[[str], str] = re.escape) -> str:
    """The template as a regular expression; `slot` gives the (grouped) expression of a slot."""
    match node:
        case Literal(text):
            return literal(text)
        case Slot(name):
            return slot(name)
        case Choice(options):
            return "(?:" + "|".join(pattern(option, slot, literal) for option in options) + ")"
        case Joined(parts):
            return "".join(pattern(part, slot, literal) for part in parts)


def slots_of(node: Node) -> frozenset[str]:
    """Every slot that some reading of the template names."""
    match node:
        case Literal():
            return frozenset()
        case Slot(name):
            return frozenset((name,))
        case Choice(options):
            return frozenset().union(*(slots_of(option) for option in options))
        case Joined(parts):
            return frozenset().union(*(slots_of(part) for part in parts))


def pick(rng: random.Random, options: Sequence[str], falloff: float = 0.7) -> str:
    """An option, the first ones more often: people, too, have favourite phrases.

    The weights keep the choice from being flattened into nothing when a model samples below temperature 1.
    """
    return rng.choices(options, weights=[(index + 1) ** -falloff for index in range(len(options))])[0]
