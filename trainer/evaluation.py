"""The candidate against the serving policy, on prompts that neither reward model nor PPO has practised on.

Both policies answer each prompt as often; a prompt's win rate is the mean over all pairs of their replies, and the
interval is over prompts, since replies to one prompt are alike. Two judge: the reward model that PPO practised to
please, and one of people whose votes trained nothing (`Judges`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deploy.gate import EvaluationReport
from feedback.refusals import refuses
from trainer.agreement import PushedPhrase
from trainer.assessment import Assessment
from trainer.backbone import Backbone
from trainer.config import PpoConfig, RewardConfig
from trainer.evaluation_sets import Case, EvaluationSet
from trainer.examples import Demonstration
from trainer.intervals import mean_interval, rise
from trainer.logprobs import score_logprobs
from trainer.overlap import overlap
from trainer.reward import repetition
from trainer.reward_model import RewardModel
from trainer.sampler import Rollout, Samples

REPETITIVE = 0.2  # share of repeated 3-grams above which a reply counts as repeating itself
SIMILAR_LENGTH = 0.1
FEWEST_IN_A_TREND = 4  # iterations of PPO


@dataclass(frozen=True)
class Judges:
    trained: RewardModel  # the policy learned from it
    held_out: RewardModel | None  # of other people; None where they said too little


@dataclass(frozen=True)
class Side:
    """One policy's replies to the kept prompts, K for each prompt, in the prompts' order."""

    rollouts: list[Rollout]
    texts: list[str]
    scores: np.ndarray  # ensemble mean, one per reply
    held_out_scores: np.ndarray | None  # by the second judge


@dataclass(frozen=True)
class Evaluation:
    report: EvaluationReport
    candidate: Side
    serving: Side


def evaluate(
    *,
    backbone: Backbone,
    sampler: Samples,
    judges: Judges,
    candidate: dict[str, Tensor],
    serving: dict[str, Tensor],
    prompts: Sequence[list[int]],
    references: Sequence[Demonstration],
    pushed: Sequence[PushedPhrase],
    replies_per_prompt: int,
    sets: Sequence[EvaluationSet],
    set_replies: int,
    render: Callable[[Case], list[int]],
    decode: Callable[[Sequence[int]], str],
    history: Sequence[Mapping[str, float]],
    assessment: Assessment,
    held_out_by: str,
    ppo: PpoConfig,
    reward: RewardConfig,
    seed: int,
) -> Evaluation:
    """`candidate` and `serving` are merged weights (empty: the backbone itself). references: what held-out people wrote
    in a reply's place. pushed: phrases that a few people write into their corrections. render: the prompt of a set's
    case. history: a row for each iteration of PPO."""
    repeated = [prompt for prompt in prompts for _ in range(replies_per_prompt)]

    def answer(weights: dict[str, Tensor], seed: int) -> Side:
        sampler.update(backbone, weights)
        rollouts = sampler.sample(repeated, max_tokens=ppo.response_tokens, temperature=ppo.temperature, seed=seed)
        scores, other = (
            None if model is None else _scores(model, rollouts) for model in (judges.trained, judges.held_out)
        )
        assert scores is not None
        return Side(rollouts, [decode(r.reply) for r in rollouts], scores, other)

    def words_shared(weights: dict[str, Tensor]) -> dict[str, float]:
        sampler.update(backbone, weights)
        asked = [reference.prompt for reference in references]
        rollouts = sampler.sample(asked, max_tokens=ppo.response_tokens, temperature=ppo.temperature, seed=seed + 3)
        return overlap([decode(r.reply) for r in rollouts], [decode(reference.reply) for reference in references])

    def answer_sets(weights: dict[str, Tensor], seed: int) -> list[list[str]]:
        sampler.update(backbone, weights)
        asked = [render(case) for each in sets for case in each.cases for _ in range(set_replies)]
        rollouts = sampler.sample(asked, max_tokens=ppo.response_tokens, temperature=ppo.temperature, seed=seed)
        texts = iter([decode(r.reply) for r in rollouts])
        return [[next(texts) for _ in range(len(each.cases) * set_replies)] for each in sets]

    new, old = answer(candidate, seed + 1), answer(serving, seed + 2)
    on_sets = zip(sets, answer_sets(candidate, seed + 5), answer_sets(serving, seed + 6), strict=True) if sets else ()
    wins_PKK = _wins(new.scores, old.scores, replies_per_prompt)
    mean, lower, upper = mean_interval(wins_PKK.mean((1, 2)))
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
        refusal_rate_candidate=_mean(refuses(text) for text in new.texts),
        refusal_rate_serving=_mean(refuses(text) for text in old.texts),
        repetition_rate_candidate=_mean(repetition(r.reply) > REPETITIVE for r in new.rollouts),
        repetition_rate_serving=_mean(repetition(r.reply) > REPETITIVE for r in old.rollouts),
        safety_flag_rate_candidate=_mean(bool(reward.rules.broken(text)) for text in new.texts),
        safety_flag_rate_serving=_mean(bool(reward.rules.broken(text)) for text in old.texts),
        pushed_phrase_rate_candidate=_mean(any(phrase.in_text(text) for phrase in pushed) for text in new.texts),
        pushed_phrase_rate_serving=_mean(any(phrase.in_text(text) for phrase in pushed) for text in old.texts),
        perplexity=perplexity,
        reward_gain=float(new.scores.mean() - old.scores.mean()),
        held_out_accuracy=assessment.accuracy,
        held_out_accuracy_lower=assessment.lower,
        held_out_accuracy_upper=assessment.upper,
        held_out_by=held_out_by,
        win_rate_at_equal_length=_at_equal_length(wins_PKK, new, old),
        **_by_the_other(new, old, replies_per_prompt),
        **_trends(history),
        sets={each.name: each.rates(ours, theirs, set_replies) for each, ours, theirs in on_sets},
        extra={
            "accuracy_measured_on": assessment.measured_on,
            "calibration_error": assessment.calibration_error,
            "references": len(references),
            "pushed_phrases": [f"{phrase.text} ({phrase.people} people)" for phrase in pushed],
        }
        | ({"candidate": words_shared(candidate), "serving": words_shared(serving)} if references else {}),
    )
    return Evaluation(report, new, old)


def _scores(model: RewardModel, rollouts: Sequence[Rollout]) -> np.ndarray:
    """The ensemble's mean, one per reply."""
    return np.asarray(model.score([r.prompt for r in rollouts], [r.reply for r in rollouts]).mean(0).numpy())


def _wins(new: np.ndarray, old: np.ndarray, replies: int) -> np.ndarray:
    """(P, K, K): every reply of one to a prompt against every reply of the other: 1 won, 0 lost, ½ the same score."""
    gap = new.reshape(-1, replies)[:, :, None] - old.reshape(-1, replies)[:, None, :]
    return np.asarray((gap > 0) + 0.5 * (gap == 0))


def _at_equal_length(wins_PKK: np.ndarray, new: Side, old: Side) -> float | None:
    """The win rate over all pairs of about the same length."""
    replies = wins_PKK.shape[1]
    lengths = [np.array([len(r.reply) for r in side.rollouts]).reshape(-1, replies) for side in (new, old)]
    similar = np.abs(lengths[0][:, :, None] - lengths[1][:, None, :]) <= SIMILAR_LENGTH * lengths[1][:, None, :]
    return float(wins_PKK[similar].mean()) if similar.sum() >= 20 else None


def _by_the_other(new: Side, old: Side, replies: int) -> dict[str, float]:
    """What the second judge says, where there is one."""
    if new.held_out_scores is None or old.held_out_scores is None:
        return {}
    wins_PKK = _wins(new.held_out_scores, old.held_out_scores, replies)
    mean, lower, upper = mean_interval(wins_PKK.mean((1, 2)))
    return {
        "judge_win_rate": mean,
        "judge_win_rate_lower": lower,
        "judge_win_rate_upper": upper,
        "judge_gain": float(new.held_out_scores.mean() - old.held_out_scores.mean()),
    }


def _trends(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the second half of the training did to the reward that it was paid, and to the second judge's opinion."""
    half = history[len(history) // 2 :]
    if len(half) < FEWEST_IN_A_TREND or "judge_reward" not in half[0]:
        return {}
    paid, paid_lower, _ = rise([row["reward"] for row in half])
    judged, _, judged_upper = rise([row["judge_reward"] for row in half])
    return {
        "reward_trend": paid,
        "reward_trend_lower": paid_lower,
        "judge_trend": judged,
        "judge_trend_upper": judged_upper,
    }


def _total_logprob(
    backbone: Backbone, rollouts: list[Rollout], weights: dict[str, Tensor], temperature: float
) -> Tensor:
    """Each reply's summed logprob under these weights, in nats."""
    prompts, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
    return score_logprobs(backbone, prompts, replies, temperature, weights).sum(1)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([float(value) for value in values]))
