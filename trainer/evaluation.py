"""The candidate against the serving policy, on prompts that neither reward model nor PPO has practised on.

Both policies answer each prompt as often; a prompt's win rate is the mean over all pairs of their replies, and the
interval is over prompts, since replies to one prompt are alike. The judge is the reward model's ensemble mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deploy.gate import EvaluationReport
from trainer.assessment import Assessment
from trainer.backbone import Backbone
from trainer.config import PpoConfig, RewardConfig
from trainer.intervals import mean_interval
from trainer.logprobs import score_logprobs
from trainer.ppo import Samples
from trainer.reward import repetition
from trainer.reward_model import RewardModel
from trainer.sampler import Rollout

REFUSAL = re.compile(
    r"\b(i (can(?:no|')t|am not able to|will not|won't) (help|answer|do|talk)|as an ai)\b"
    r"|我(不能|无法|没法)(帮|回答|谈)",
    re.I,
)
REPETITIVE = 0.2  # share of repeated 3-grams above which a reply counts as repeating itself
SIMILAR_LENGTH = 0.1


@dataclass(frozen=True)
class Side:
    """One policy's replies to the kept prompts, K for each prompt, in the prompts' order."""

    rollouts: list[Rollout]
    texts: list[str]
    scores: np.ndarray  # ensemble mean, one per reply


@dataclass(frozen=True)
class Evaluation:
    report: EvaluationReport
    candidate: Side
    serving: Side


def evaluate(
    *,
    backbone: Backbone,
    sampler: Samples,
    reward_model: RewardModel,
    candidate: dict[str, Tensor],
    serving: dict[str, Tensor],
    prompts: Sequence[list[int]],
    replies_per_prompt: int,
    decode: Callable[[Sequence[int]], str],
    assessment: Assessment,
    ppo: PpoConfig,
    reward: RewardConfig,
    seed: int,
) -> Evaluation:
    """`candidate` and `serving` are merged weights (empty: the backbone itself)."""
    repeated = [prompt for prompt in prompts for _ in range(replies_per_prompt)]

    def answer(weights: dict[str, Tensor], seed: int) -> Side:
        sampler.update(backbone, weights)
        rollouts = sampler.sample(repeated, max_tokens=ppo.response_tokens, temperature=ppo.temperature, seed=seed)
        scores = reward_model.score([r.prompt for r in rollouts], [r.reply for r in rollouts]).mean(0).numpy()
        return Side(rollouts, [decode(r.reply) for r in rollouts], scores)

    new, old = answer(candidate, seed + 1), answer(serving, seed + 2)
    wins, equal = _wins(new, old, len(prompts), replies_per_prompt)
    mean, lower, upper = mean_interval(wins)
    kl_nats = -_total_logprob(backbone, new.rollouts, {}, ppo.temperature).mean().item()
    kl_nats += _total_logprob(backbone, new.rollouts, candidate, ppo.temperature).mean().item()
    tokens = sum(len(r.reply) for r in new.rollouts)
    perplexity = math.exp(-_total_logprob(backbone, new.rollouts, serving, 1.0).sum().item() / tokens)
    report = EvaluationReport(
        prompts=len(prompts),
        win_rate=mean,
        win_rate_lower=lower,
        win_rate_upper=upper,
        kl_nats=kl_nats,
        mean_tokens_candidate=_mean(len(r.reply) for r in new.rollouts),
        mean_tokens_serving=_mean(len(r.reply) for r in old.rollouts),
        refusal_rate_candidate=_mean(bool(REFUSAL.search(text)) for text in new.texts),
        refusal_rate_serving=_mean(bool(REFUSAL.search(text)) for text in old.texts),
        repetition_rate_candidate=_mean(repetition(r.reply) > REPETITIVE for r in new.rollouts),
        repetition_rate_serving=_mean(repetition(r.reply) > REPETITIVE for r in old.rollouts),
        safety_flag_rate_candidate=_mean(_flagged(text, reward.banned) for text in new.texts),
        safety_flag_rate_serving=_mean(_flagged(text, reward.banned) for text in old.texts),
        perplexity=perplexity,
        reward_gain=float(new.scores.mean() - old.scores.mean()),
        held_out_accuracy=assessment.accuracy,
        held_out_accuracy_lower=assessment.lower,
        held_out_accuracy_upper=assessment.upper,
        win_rate_at_equal_length=equal,
        extra={"accuracy_measured_on": assessment.measured_on, "calibration_error": assessment.calibration_error},
    )
    return Evaluation(report, new, old)


def _wins(new: Side, old: Side, prompts: int, replies: int) -> tuple[np.ndarray, float | None]:
    """Each prompt's win rate, and the win rate over all pairs of about the same length."""
    new_PK, old_PK = new.scores.reshape(prompts, replies), old.scores.reshape(prompts, replies)
    gap = new_PK[:, :, None] - old_PK[:, None, :]
    wins = (gap > 0) + 0.5 * (gap == 0)
    lengths = [np.array([len(r.reply) for r in side.rollouts]).reshape(prompts, replies) for side in (new, old)]
    similar = np.abs(lengths[0][:, :, None] - lengths[1][:, None, :]) <= SIMILAR_LENGTH * lengths[1][:, None, :]
    return wins.mean((1, 2)), float(wins[similar].mean()) if similar.sum() >= 20 else None


def _total_logprob(
    backbone: Backbone, rollouts: list[Rollout], weights: dict[str, Tensor], temperature: float
) -> Tensor:
    """Each reply's summed logprob under these weights, in nats."""
    prompts, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
    return score_logprobs(backbone, prompts, replies, temperature, weights).sum(1)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([float(value) for value in values]))


def _flagged(text: str, banned: Sequence[str]) -> bool:
    return any(phrase.lower() in text.lower() for phrase in banned)
