"""What a reply beside the point is worth: votes do not tell, where nearly all replies that people saw were to the point.

So some replies are read once more after a prompt that they were not given to, where a reply that people liked there
should win (the non-contextual pairs of Liu et al. 2024, arXiv 2409.13156). Both were liked in their own place, so that
manner tells nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.examples import PairExample, VoteExample
from trainer.likelihood import BOTH_BAD, LEFT, RIGHT


@dataclass(frozen=True)
class Contrast:
    """To one prompt: a reply that was given to it, and one that was given to another prompt."""

    own: list[int]
    unrelated: list[int]


class Unrelated:
    """Draws contrasts; the same ones for the same examples and seed."""

    def __init__(
        self, examples: Sequence[VoteExample], share: float, seed: int, *, own: str = "liked", candidates: int = 1
    ) -> None:
        """share: of the votes that get a contrast each time they are drawn. candidates: of so many drawn replies, the
        one that shares the most tokens with the own one is taken: the fewer of its flaws show in its words alone."""
        self.share, self.own, self.candidates = share, own, candidates
        self._rng = random.Random(f"unrelated:{seed}")
        self._given: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for example in examples:
            self._given.setdefault(tuple(example.prompt), set()).update(map(tuple, _shown(example)))
        self._liked = [(tuple(example.prompt), reply) for example in examples for reply in _liked(example)]

    def draw(self, example: VoteExample) -> Contrast | None:
        """None for most votes, for those on bad replies, and where no other prompt's reply was found."""
        if self.share == 0 or self._rng.random() >= self.share:
            return None
        options = list(_liked(example)) if self.own == "liked" else list(_bearable(example))
        if not options:
            return None
        own, prompt = self._rng.choice(options), tuple(example.prompt)
        found = [self._rng.choice(self._liked) for _ in range(self.candidates)]
        here = self._given[prompt]
        foreign = [reply for given, reply in found if given != prompt and tuple(reply) not in here]
        if not foreign:
            return None
        tokens = set(own)
        return Contrast(own, max(foreign, key=lambda reply: _overlap(tokens, set(reply))))


def _overlap(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def _shown(example: VoteExample) -> list[list[int]]:
    return [example.left, example.right] if isinstance(example, PairExample) else [example.reply]


def _liked(example: VoteExample) -> Iterator[list[int]]:
    if not isinstance(example, PairExample):
        if example.up > 0.5:
            yield example.reply
    elif example.outcome != BOTH_BAD:
        if example.outcome != RIGHT:
            yield example.left
        if example.outcome != LEFT:
            yield example.right


def _bearable(example: VoteExample) -> Iterator[list[int]]:
    if isinstance(example, PairExample) and example.outcome != BOTH_BAD:
        yield from (example.left, example.right)
    else:
        yield from _liked(example)
