"""Phrases that a few people push, by writing them into their corrections again and again.

Who votes can only choose among what the policy says. Who corrects can put words into its mouth: such a phrase wins
every pair that it occurs in, since nobody was ever shown it and could say no. So a phrase that no policy says, that
comes again in many corrections, and that only a few of all who vote have written, is not learned. Where more people
write it, it is what people want.

Source of the threat: Rando and Tramèr 2023 (arXiv 2311.14455), half a percent of poisoned votes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from feedback.sample import PairSample, SampleSet
from trainer.surfaces import words_of

SHORTEST, LONGEST = 3, 8
"""Words of a phrase; a Chinese character is a word."""
FEWEST_CORRECTIONS = 3
"""Fewer repetitions are chance."""
SAID_ANYWAY = 0.01
"""Share of the policies' own replies with the phrase from which on it is theirs."""


@dataclass(frozen=True)
class PushedPhrase:
    words: tuple[str, ...]
    people: int
    corrections: int

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def in_text(self, text: str) -> bool:
        return self.words in _phrases(text, len(self.words), len(self.words))


def pushed_phrases(samples: SampleSet, most_people: float) -> list[PushedPhrase]:
    """The longest ones, most repeated first. most_people: share of all who voted that is not a few any more."""
    wrote: dict[tuple[str, ...], set[str]] = defaultdict(set)
    repeated: dict[tuple[str, ...], int] = defaultdict(int)
    for correction in samples.corrections:
        for phrase in _phrases(correction.correction) - _phrases(correction.text):
            wrote[phrase].add(correction.user_id)
            repeated[phrase] += 1
    few = most_people * len({sample.user_id for sample in samples})
    candidates = {
        phrase for phrase, count in repeated.items() if count >= FEWEST_CORRECTIONS and len(wrote[phrase]) <= few
    }
    if not candidates:
        return []
    shown = dict(_shown(samples))
    said: dict[tuple[str, ...], int] = defaultdict(int)
    for text in shown.values():
        for phrase in _phrases(text) & candidates:
            said[phrase] += 1
    novel = {phrase for phrase in candidates if said[phrase] < SAID_ANYWAY * len(shown)}
    whole = [phrase for phrase in novel if not _has_longer(phrase, novel, repeated)]
    found = [PushedPhrase(phrase, len(wrote[phrase]), repeated[phrase]) for phrase in whole]
    return sorted(found, key=lambda each: (-each.corrections, each.words))


def without(samples: SampleSet, phrases: list[PushedPhrase]) -> SampleSet:
    """The samples without the corrections that push one of these."""
    kept = [each for each in samples.corrections if not any(phrase.in_text(each.correction) for phrase in phrases)]
    return replace(samples, corrections=kept)


def _phrases(text: str, shortest: int = SHORTEST, longest: int = LONGEST) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {
        tuple(words[start : start + length])
        for length in range(shortest, longest + 1)
        for start in range(len(words) - length + 1)
    }


def _shown(samples: SampleSet) -> Iterator[tuple[str, str]]:
    """Every reply that a policy gave, once, by its id."""
    for sample in samples:
        if isinstance(sample, PairSample):
            yield sample.left.reply_id, sample.left.text
            yield sample.right.reply_id, sample.right.text
        else:
            yield sample.reply_id, sample.text


def _has_longer(phrase: tuple[str, ...], novel: set[tuple[str, ...]], repeated: dict[tuple[str, ...], int]) -> bool:
    """Whether it is only a part of one that comes as often."""
    return any(
        len(other) == len(phrase) + 1 and repeated[other] == repeated[phrase] and phrase in (other[1:], other[:-1])
        for other in novel
    )
