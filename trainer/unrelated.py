"""What a reply beside the point is worth: no vote tells, where nearly all replies that people saw were to the point.

So some votes are read with one reply more, which was given to another prompt and against which a reply that people
liked here should win: the non-contextual pairs of Liu et al. 2024 (RRM, arXiv 2409.13156). Both were liked in their own
place, so that manner tells nothing. The paper's further pairs, such as two replies beside the point as a tie, are left
out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.examples import PairExample, VoteExample
from trainer.likelihood import BOTH_BAD, LEFT, RIGHT

CANDIDATES = 8
"""Of so many replies to other prompts, the one that shares the most words with the own one is taken: the more alike the
prompts, the less is learned from topics alone."""


@dataclass(frozen=True)
class Contrast:
    """To one prompt: a reply that was given to it, and one that was given to another prompt."""

    own: list[int]
    unrelated: list[int]


class Unrelated:
    """Draws contrasts; the same ones for the same examples and seed."""

    def __init__(self, examples: Sequence[VoteExample], share: float, seed: int) -> None:
        """examples: where the replies come from, and what `draw` is called with. share: of the votes that get a
        contrast, each time that they are read."""
        self.share = share
        self._rng = random.Random(f"unrelated:{seed}")
        self._given: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for example in examples:
            self._given.setdefault(tuple(example.prompt), set()).update(map(tuple, _shown(example)))
        self._liked = [(tuple(example.prompt), reply) for example in examples for reply in _liked(example)]

    def draw(self, example: VoteExample) -> Contrast | None:
        """None for the other votes, for those that like no reply, and where no other prompt's reply was found."""
        if self._rng.random() >= self.share:
            return None
        liked = list(_liked(example))
        if not liked:
            return None
        own, prompt = self._rng.choice(liked), tuple(example.prompt)
        drawn = [self._rng.choice(self._liked) for _ in range(CANDIDATES)]
        unrelated = [reply for to, reply in drawn if to != prompt and tuple(reply) not in self._given[prompt]]
        return Contrast(own, max(unrelated, key=lambda reply: _shared(own, reply))) if unrelated else None


def _shared(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of tokens that both have, of those that either has."""
    return len(set(one) & set(other)) / len(set(one) | set(other))


def _shown(example: VoteExample) -> list[list[int]]:
    return [example.left, example.right] if isinstance(example, PairExample) else [example.reply]


def _liked(example: VoteExample) -> Iterator[list[int]]:
    """Of a tie, both: neither is bad. A vote without weight says nothing."""
    if example.weight == 0:
        return
    if not isinstance(example, PairExample):
        if example.up > 0.5:
            yield example.reply
    elif example.outcome != BOTH_BAD:
        if example.outcome != RIGHT:
            yield example.left
        if example.outcome != LEFT:
            yield example.right
