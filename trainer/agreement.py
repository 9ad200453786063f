"""Phrases that a few people push, by writing them into their corrections again and again.

Who votes can only choose among what the policy says. Who corrects can put words into its mouth: such a phrase wins
every pair that it occurs in, since nobody was ever shown it and could say no. So a phrase that no policy says, that
comes again in many corrections, and that only a few of all who vote have written, is not learned. Where more people
write it, it is what people want.

Source of the threat: Rando and Tramèr 2023 (arXiv 2311.14455), half a percent of poisoned votes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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


MOST_PHRASES = 20
Words = tuple[str, ...]


@dataclass(frozen=True)
class PushedPhrase:
    words: Words
    people: int
    corrections: int

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def in_text(self, text: str) -> bool:
        return self.words in _phrases(words_of(text), len(self.words), len(self.words))


def pushed_phrases(samples: SampleSet, most_people: float) -> list[PushedPhrase]:
    """The most repeated first. most_people: share of all who voted that is not a few any more."""
    few = most_people * len({sample.user_id for sample in samples})
    shown = [set(_phrases(words_of(text))) for text in dict(_shown(samples)).values()] if samples.corrections else []
    written = [_Written(each.user_id, [words_of(each.correction)], each.text) for each in samples.corrections]
    found: list[PushedPhrase] = []
    while len(found) < MOST_PHRASES:
        people: dict[Words, set[str]] = defaultdict(set)
        repeated: Counter[Words] = Counter()
        for correction in written:
            for phrase in correction.new():
                people[phrase].add(correction.user_id)
                repeated[phrase] += 1
        # Of those that come as often, the longest is the whole.
        candidates = sorted(
            (
                phrase
                for phrase, count in repeated.items()
                if count >= FEWEST_CORRECTIONS and len(people[phrase]) <= few
            ),
            key=lambda phrase: (-repeated[phrase], -len(phrase), phrase),
        )
        novel = (each for each in candidates if sum(each in text for text in shown) < SAID_ANYWAY * len(shown))
        pushed = next(novel, ())
        if not pushed:
            break
        found.append(PushedPhrase(pushed, len(people[pushed]), repeated[pushed]))
        for correction in written:
            correction.cut(pushed)
    return found


class _Written:
    """What is left of a correction once the phrases that were found are cut out of it."""

    def __init__(self, user_id: str, parts: list[list[str]], corrected: str) -> None:
        self.user_id, self.parts = user_id, parts
        self._old = set(_phrases(words_of(corrected)))

    def new(self) -> set[Words]:
        return {phrase for part in self.parts for phrase in _phrases(part)} - self._old

    def cut(self, phrase: Words) -> None:
        self.parts = [piece for part in self.parts for piece in _without(part, phrase)]


def without(samples: SampleSet, phrases: list[PushedPhrase]) -> SampleSet:
    """The samples without the corrections that push one of these."""
    kept = [each for each in samples.corrections if not any(phrase.in_text(each.correction) for phrase in phrases)]
    return replace(samples, corrections=kept)


def _phrases(words: list[str], shortest: int = SHORTEST, longest: int = LONGEST) -> Iterator[Words]:
    for length in range(shortest, longest + 1):
        for start in range(len(words) - length + 1):
            yield tuple(words[start : start + length])


def _without(words: list[str], phrase: Words) -> Iterator[list[str]]:
    """What stands before, between and after it."""
    begin = 0
    for start in range(len(words) - len(phrase) + 1):
        if start >= begin and tuple(words[start : start + len(phrase)]) == phrase:
            yield words[begin:start]
            begin = start + len(phrase)
    yield words[begin:]


def _shown(samples: SampleSet) -> Iterator[tuple[str, str]]:
    """Every reply that a policy gave, once, by its id."""
    for sample in samples:
        if isinstance(sample, PairSample):
            yield sample.left.reply_id, sample.left.text
            yield sample.right.reply_id, sample.right.text
        else:
            yield sample.reply_id, sample.text
