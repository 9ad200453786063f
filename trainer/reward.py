"""The composed reward: what the ensemble believes, less what it is unsure of, plus terms that an operator weights.

Everything is in units of the reference policy's standard deviation, since the reward model is standardised on its
replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.classifier import Classifier
from trainer.config import RewardConfig


@dataclass(frozen=True)
class Reward:
    total_B: Tensor
    terms: dict[str, Tensor]  # by name, already weighted; their sum is the total, but where a reply did not end


@dataclass(frozen=True)
class Facts:
    """What the terms read of some replies."""

    scores_MB: Tensor  # of the ensemble's members
    replies: Sequence[Sequence[int]]
    texts: Sequence[str]
    ended: Sequence[bool]
    fluency_B: Tensor  # the reference's mean logprob of a reply's tokens
    consistency_B: Tensor | None = None  # see `Composer.needs_consistency`


class Composer:
    """Puts a reward together. Loads the classifiers that the config names."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._classifiers = [Classifier(term) for term in config.classifiers]

    @property
    def needs_consistency(self) -> bool:
        """Whether to measure how much more probable a reply is after its own prompt than after another one."""
        return self.config.consistency_weight != 0

    def compose(self, facts: Facts) -> Reward:
        """The reward of each reply, with its parts by name; terms that an operator has given no weight are left out."""
        config = self.config
        terms = {
            "votes": config.bound * torch.tanh(facts.scores_MB.mean(0) / config.bound),
            "uncertainty": -config.uncertainty * facts.scores_MB.var(0, unbiased=False),
            "repetition": -config.repetition_weight * torch.tensor([repetition(reply) for reply in facts.replies]),
            "rules": -config.rules.penalty
            * torch.tensor([float(len(config.rules.broken(text))) for text in facts.texts]),
        }
        if config.length_weight:
            terms["length"] = config.length_weight * torch.tensor([float(len(reply)) for reply in facts.replies])
        if config.coherence_weight:
            terms["coherence"] = config.coherence_weight * facts.fluency_B
        if facts.consistency_B is not None:
            terms["consistency"] = config.consistency_weight * facts.consistency_B
        for classifier in self._classifiers:
            terms[classifier.term.name] = classifier.term.weight * classifier.probabilities(facts.texts)
        total = torch.stack(list(terms.values())).sum(0)
        total = torch.where(torch.tensor(list(facts.ended)), total, torch.full_like(total, config.missing_end))
        return Reward(total, terms)


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Share of n-grams that repeat an earlier one in the same reply: 0 for a reply without repetition."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    if not grams:
        return 0.0
    return 1.0 - len(Counter(grams)) / len(grams)
