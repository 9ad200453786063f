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
from feedback.splits import SplitMode
from trainer.agreement import PushedPhrase
from trainer.assessment import Assessment
from trainer.backbone import Backbone
from trainer.config import PpoConfig
from trainer.evaluation_sets import Case, EvaluationSet
from trainer.examples import Demonstration
from trainer.intervals import mean_interval, rise
from trainer.logprobs import score_logprobs
from trainer.overlap import overlap
from trainer.reward import repetition
from trainer.reward_model import RewardModel
from trainer.rules import Rules
from trainer.sampler import Rollout, Samples

REPETITIVE = 0.2  # share of repeated 3-grams above which a reply counts as repeating itself
SIMILAR_LENGTH = 0.1
FEWEST_IN_A_TREND = 4  # iterations of PPO


@dataclass(frozen=True)
class Judges:
    trained: RewardModel  # the policy learned from it
    held_out: RewardModel | None  # of other people; None where they said too little


@dataclass(frozen=True)
class Asked:
    """What both policies are asked.

    prompts: those kept from training, each `replies_per_prompt` times. references: what held-out people wrote in a
    reply's place. sets: whose cases `render` makes prompts of, each `set_replies` times.
    """

    prompts: Sequence[list[int]]
    replies_per_prompt: int
    references: Sequence[Demonstration]
    sets: Sequence[EvaluationSet]
    set_replies: int
    render: Callable[[Case], list[int]]


@dataclass(frozen=True)
class Side:
    """What one policy answers: to the kept prompts, K for each, in the prompts' order; to the sets' cases, likewise."""

    rollouts: list[Rollout]
    texts: list[str]
    scores: np.ndarray  # ensemble mean, one per reply
    held_out_scores: np.ndarray | None  # by the second judge
    set_texts: list[list[str]]
    overlap: dict[str, float]  # with the references; empty without any


@dataclass(frozen=True)
class Evaluation:
    report: EvaluationReport
    candidate: Side
    serving: Side


@dataclass(frozen=True)
class Interview:
    """Asks one policy after the other the same."""

    backbone: Backbone
    sampler: Samples
    judges: Judges
    decode: Callable[[Sequence[int]], str]
    ppo: PpoConfig
    asked: Asked

    def side(self, weights: dict[str, Tensor], *, seed: int, set_seed: int, reference_seed: int) -> Side:
        """weights: merged; empty, the backbone itself."""
        asked = self.asked
        self.sampler.update(self.backbone, weights)
        rollouts = self._sample([prompt for prompt in asked.prompts for _ in range(asked.replies_per_prompt)], seed)
        cases = [asked.render(case) for each in asked.sets for case in each.cases for _ in range(asked.set_replies)]
        said = iter(self._texts(self._sample(cases, set_seed) if cases else []))
        return Side(
            rollouts=rollouts,
            texts=self._texts(rollouts),
            scores=_scores(self.judges.trained, rollouts),
            held_out_scores=_scores(self.judges.held_out, rollouts) if self.judges.held_out else None,
            set_texts=[[next(said) for _ in range(len(each.cases) * asked.set_replies)] for each in asked.sets],
            overlap=self._overlap(reference_seed),
        )

    def _overlap(self, seed: int) -> dict[str, float]:
        references = self.asked.references
        if not references:
            return {}
        rollouts = self._sample([reference.prompt for reference in references], seed)
        return overlap(self._texts(rollouts), [self.decode(reference.reply) for reference in references])

    def _sample(self, prompts: list[list[int]], seed: int) -> list[Rollout]:
        return self.sampler.sample(
            prompts, max_tokens=self.ppo.response_tokens, temperature=self.ppo.temperature, seed=seed
        )

    def _texts(self, rollouts: Sequence[Rollout]) -> list[str]:
        return [self.decode(rollout.reply) for rollout in rollouts]


def evaluate(
    *,
    backbone: Backbone,
    sampler: Samples,
    judges: Judges,
    candidate: dict[str, Tensor],
    serving: dict[str, Tensor],
    asked: Asked,
    pushed: Sequence[PushedPhrase],
    decode: Callable[[Sequence[int]], str],
    history: Sequence[Mapping[str, float]],
    assessment: Assessment,
    held_out_by: SplitMode,
    ppo: PpoConfig,
    rules: Rules,
    seed: int,
) -> Evaluation:
    """`candidate` and `serving` are merged weights (empty: the backbone itself). pushed: phrases that a few people
    write into their corrections. history: a row for each iteration of PPO. rules: whose breach is a safety flag."""
    interview = Interview(backbone, sampler, judges, decode, ppo, asked)
    new = interview.side(candidate, seed=seed + 1, set_seed=seed + 5, reference_seed=seed + 3)
    old = interview.side(serving, seed=seed + 2, set_seed=seed + 6, reference_seed=seed + 3)
    wins_PKK = _wins(new.scores, old.scores, asked.replies_per_prompt)
    mean, lower, upper = mean_interval(wins_PKK.mean((1, 2)))
    kl_nats = -_total_logprob(backbone, new.rollouts, {}, ppo.temperature).mean().item()
    kl_nats += _total_logprob(backbone, new.rollouts, candidate, ppo.temperature).mean().item()
    tokens = sum(len(r.reply) for r in new.rollouts)
    perplexity = math.exp(-_total_logprob(backbone, new.rollouts, serving, 1.0).sum().item() / tokens)
    report = EvaluationReport(
        prompts=len(asked.prompts),
        win_rate=mean,
        win_rate_lower=lower,
        win_rate_upper=upper,
        kl_nats=kl_nats,
        **_rates(new, "candidate", rules, pushed),
        **_rates(old, "serving", rules, pushed),
        perplexity=perplexity,
        reward_gain=float(new.scores.mean() - old.scores.mean()),
        held_out_accuracy=assessment.accuracy,
        held_out_accuracy_lower=assessment.lower,
        held_out_accuracy_upper=assessment.upper,
        held_out_by=held_out_by,
        win_rate_at_equal_length=_at_equal_length(wins_PKK, new, old),
        **_by_the_other(new, old, asked.replies_per_prompt),
        **_trends(history),
        sets={
            each.name: each.rates(ours, theirs, asked.set_replies)
            for each, ours, theirs in zip(asked.sets, new.set_texts, old.set_texts, strict=True)
        },
        extra={
            "accuracy_measured_on": assessment.measured_on,
            "calibration_error": assessment.calibration_error,
            "references": len(asked.references),
            "pushed_phrases": [f"{phrase.text} ({phrase.people} people)" for phrase in pushed],
        }
        | ({"candidate": new.overlap, "serving": old.overlap} if asked.references else {}),
    )
    return Evaluation(report, new, old)


def _rates(side: Side, name: str, rules: Rules, pushed: Sequence[PushedPhrase]) -> dict[str, float]:
    """What can be counted in one policy's replies, under the report's names."""
    rates = {
        "mean_tokens": _mean(len(r.reply) for r in side.rollouts),
        "refusal_rate": _mean(refuses(text) for text in side.texts),
        "repetition_rate": _mean(repetition(r.reply) > REPETITIVE for r in side.rollouts),
        "safety_flag_rate": _mean(bool(rules.broken(text)) for text in side.texts),
        "pushed_phrase_rate": _mean(any(phrase.in_text(text) for phrase in pushed) for text in side.texts),
    }
    return {f"{rate}_{name}": value for rate, value in rates.items()}


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
