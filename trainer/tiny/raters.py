"""Simulated people: each has a hidden taste, some noise, sometimes a contrary mind, and sees texts alone.

Nothing on the training path may import this module (import-linter holds it): a taste reaches the trainer through
votes, or not at all. In use:

    rater = Rater("short", noise=0.1, seed=7)
    for prompt in prompts(seed=7, count=20):
        rater.choose(prompt.messages, left_text, right_text)   # "left", "right", "tie" or "both_bad"
        rater.thumb(prompt.messages, reply_text)               # Thumb("up", ("short",)), or None: no vote
    true_preference("short", prompt.messages, old_text, new_text)  # what a noiseless person would say

Utility of a reply = strength of the taste * feature (in -1..1) - penalties for replies that are malformed or beside
the point + a small idiosyncrasy, drawn once per rater and text.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.tiny.dialogues import Message, make_dialogues
from trainer.tiny.intent import Ask
from trainer.tiny.judge import Style, Verdict, judge

Choice = Literal["left", "right", "tie", "both_bad"]
Side = Literal["left", "right", "tie"]

STRENGTH = 3.0  # of a taste, against logistic noise of scale NOISE_SCALE
NOISE_SCALE = 0.35
IDIOSYNCRASY = 0.25
MALFORMED, UNFIT = 12.0, 8.0
BAD = -4.0  # a reply below this utility is bad whatever the taste
TIE = 0.25  # utilities closer than this feel the same
_SILENCE = 0.25  # a person with no clear opinion often does not vote


def _length_feature(style: Style) -> float:
    """1 for one or two words, 0 at 13, -1 from 26."""
    return max(-1.0, min(1.0, math.log(13.0 / max(style.length, 1.0)) / 0.7))


def _engaged_feature(verdict: Verdict) -> float:
    """-1 without a question, -0.2 with a formula, 0.4 with a question of its own, 1 if a detail goes before that."""
    if not verdict.style.asks_question:
        return -1.0
    return -0.2 if verdict.style.asks_formula else 1.0 if verdict.detailed else 0.4


_FEATURES: dict[str, Callable[[Verdict], float]] = {
    "short": lambda v: _length_feature(v.style),
    "long": lambda v: -_length_feature(v.style),
    "warm": lambda v: (-1.0, 0.6, 1.0)[min(v.style.warm_count, 2)],
    "question": lambda v: 1.0 if v.style.asks_question else -1.0,
    "curious": lambda v: -1.0 if not v.style.asks_question else 0.3 if v.style.asks_formula else 1.0,
    "engaged": _engaged_feature,
    "exclaim": lambda v: 1.0 if v.style.exclaims else -1.0,
    "plain": lambda v: -1.0 if v.style.exclaims else 1.0,
    "list": lambda v: 1.0 if v.style.listed else -1.0,
    "tidy": lambda v: -1.0 if not v.style.listed else 1.0 if v.style.bare else 0.3,
    "format": lambda v: 1.0 if v.style.listed or v.style.restated else -1.0,
    "correct": lambda v: 0.0 if v.right is None else 1.0 if v.right else -1.0,
    "none": lambda v: 0.0,
}
TASTES = tuple(_FEATURES)
"""short, long, warm, question, curious (a question that is no formula), engaged (such a question, better after a
detail), exclaim, plain, list, tidy (a list, better with nothing around it), format (list or restated), correct, none
(the control)."""

_SATISFIED = {"short": 0.2, "long": 0.2}  # a feature above this satisfies; any positive one elsewhere


def feature(taste: str, verdict: Verdict) -> float:
    """How far a reply meets a taste, from -1 to 1. Raises ValueError for an unknown taste."""
    if taste not in _FEATURES:
        raise ValueError(f"unknown taste {taste!r}: choose one of {', '.join(TASTES)}")
    return _FEATURES[taste](verdict)


def satisfies(taste: str, verdict: Verdict) -> bool:
    """A good reply that meets the taste. A reply that could not be wrong satisfies `correct`."""
    if not (verdict.well_formed and verdict.fits):
        return False
    if taste == "none" or (taste == "correct" and verdict.right is None):
        return True
    return feature(taste, verdict) > _SATISFIED.get(taste, 0.0)


def _utility(taste: str, verdict: Verdict) -> float:
    penalty = MALFORMED if not verdict.well_formed else UNFIT if not verdict.fits else 0.0
    return STRENGTH * feature(taste, verdict) - penalty


def true_preference(taste: str, messages: Sequence[Message], left: str, right: str) -> Side:
    """What a person of this taste prefers, without noise or idiosyncrasy. For evaluation, never for training."""
    difference = _utility(taste, judge(messages, left)) - _utility(taste, judge(messages, right))
    return "tie" if abs(difference) < TIE else "left" if difference > 0 else "right"


def unbeatable(taste: str, messages: Sequence[Message], reply: str) -> bool:
    """No reply is worth more to a person of this taste: at best it is met with a tie."""
    return _utility(taste, judge(messages, reply)) > STRENGTH - TIE


@dataclass(frozen=True)
class Thumb:
    value: Literal["up", "down"]
    reasons: tuple[str, ...] = ()


_UP_REASONS = {
    "short": "short", "long": "detailed", "warm": "friendly", "question": "engaging", "curious": "engaging",
    "engaged": "engaging", "exclaim": "lively", "plain": "calm", "list": "clear", "tidy": "clear", "format": "clear",
    "correct": "correct", "none": "helpful",
}  # fmt: skip
_DOWN_REASONS = {
    "short": "too_long", "long": "too_short", "warm": "cold", "question": "dull", "curious": "dull",
    "engaged": "dull", "exclaim": "dull", "plain": "too_loud", "list": "unclear", "tidy": "unclear",
    "format": "unclear", "correct": "wrong", "none": "unhelpful",
}  # fmt: skip


class Rater:
    """One person.

    noise: share of answers given at random. contrary: wants the opposite of the taste (never a malformed reply).
    side_bias: how much the left side gains in utility, drawn per person from the seed.
    """

    def __init__(self, taste: str, *, noise: float = 0.1, contrary: bool = False, seed: int = 0) -> None:
        if taste not in _FEATURES:
            raise ValueError(f"unknown taste {taste!r}: choose one of {', '.join(TASTES)}")
        if not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise is a share of answers and must lie in 0..1, not {noise}")
        self.taste, self.noise, self.contrary, self.seed = taste, noise, contrary, seed
        self._rng = random.Random(f"rater:{taste}:{seed}")
        self.threshold = self._rng.gauss(0.0, 0.3)  # how hard to please with a thumb
        self.side_bias = self._rng.gauss(0.0, 0.15)

    def _whim(self, text: str) -> float:
        digest = hashlib.sha256(f"{self.seed}:{self.taste}:{text}".encode()).digest()
        return IDIOSYNCRASY * (int.from_bytes(digest[:4], "big") / 2**31 - 1.0)

    def _logistic(self) -> float:
        share = min(max(self._rng.random(), 1e-6), 1 - 1e-6)
        return NOISE_SCALE * math.log(share / (1 - share))

    def utility(self, messages: Sequence[Message], reply: str) -> float:
        """What this person finds a reply worth, before the noise of the moment."""
        verdict = judge(messages, reply)
        value = _utility(self.taste, verdict)
        if self.contrary:
            value -= 2 * STRENGTH * feature(self.taste, verdict)
        return value + self._whim(reply)

    def choose(self, messages: Sequence[Message], left: str, right: str) -> Choice:
        """One of two replies to the same messages."""
        if self._rng.random() < self.noise:
            return self._rng.choice(("left", "right", "left", "right", "tie"))
        first, second = self.utility(messages, left), self.utility(messages, right)
        if first < BAD and second < BAD:
            return "both_bad"
        if left == right:
            return "tie"
        difference = first - second + self.side_bias + self._logistic()
        return "tie" if abs(difference) < TIE else "left" if difference > 0 else "right"

    def thumb(self, messages: Sequence[Message], reply: str) -> Thumb | None:
        """A thumb with a reason, or None: people without a clear opinion mostly pass on."""
        if self._rng.random() < self.noise:
            return Thumb(self._rng.choice(("up", "down")))
        value = self.utility(messages, reply) - self.threshold + self._logistic()
        if abs(value) < 2 * TIE and self._rng.random() > _SILENCE:
            return None
        up = value > 0
        if self.contrary or self._rng.random() < 0.5:
            return Thumb("up" if up else "down")
        return Thumb("up", (_UP_REASONS[self.taste],)) if up else Thumb("down", (_DOWN_REASONS[self.taste],))


@dataclass(frozen=True)
class Prompt:
    """What a simulated person says: messages that end with the user's. ask: what the judge takes them to want."""

    messages: tuple[Message, ...]
    ask: Ask

    @property
    def text(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


def prompts(seed: int, count: int, *, single_turn: bool = False, system: bool = True) -> list[Prompt]:
    """Prompts from held-out dialogues. single_turn: without earlier turns. system: system prompts may occur."""
    found: list[Prompt] = []
    batch = 0
    while len(found) < count:
        for dialogue in make_dialogues(1_000_003 * (batch + 1) + seed, 4 * count, "held_out"):
            messages = dialogue.prompt
            has_system = messages[0]["role"] == "system"
            if (has_system and not system) or (single_turn and len(messages) - has_system > 1):
                continue
            found.append(Prompt(tuple(messages), dialogue.ask))
            if len(found) == count:
                break
        batch += 1
    return found
