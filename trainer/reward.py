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

from trainer.config import RewardConfig


@dataclass(frozen=True)
class Reward:
    total_B: Tensor
    terms: dict[str, Tensor]  # by name, already weighted; their sum is the total, but where a reply did not end


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Share of n-grams that repeat an earlier one in the same reply: 0 for a reply without repetition."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    if not grams:
        return 0.0
    return 1.0 - len(Counter(grams)) / len(grams)


def compose(
    scores_MB: Tensor,
    replies: Sequence[Sequence[int]],
    texts: Sequence[str],
    ended: Sequence[bool],
    config: RewardConfig,
) -> Reward:
    """The reward of each reply, with its parts by name."""
    terms = {
        "votes": scores_MB.mean(0),
        "uncertainty": -config.uncertainty * scores_MB.var(0, unbiased=False),
        "length": config.length_weight * torch.tensor([float(len(reply)) for reply in replies]),
        "repetition": -config.repetition_weight * torch.tensor([repetition(reply) for reply in replies]),
        "rules": -config.banned_penalty
        * torch.tensor([float(sum(phrase.lower() in text.lower() for phrase in config.banned)) for text in texts]),
    }
    total = torch.stack(list(terms.values())).sum(0)
    total = torch.where(torch.tensor(list(ended)), total, torch.full_like(total, config.missing_end))
    return Reward(total, terms)
