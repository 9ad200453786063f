"""How good is a reward model? Measured on votes of people and prompts that it has not seen.

Accuracy counts decided pairs only: a tie has no right answer. Thumbs are judged by concordance: how often an upvoted
reply scores above a downvoted one. Intervals are Wilson's for accuracy and Newcombe's for concordance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from trainer.examples import PairExample, ThumbExample, VoteExample
from trainer.intervals import concordance_interval, wilson
from trainer.likelihood import LEFT, RIGHT, VoteModel, pair_probabilities
from trainer.reward_model import RewardModel


@dataclass(frozen=True)
class Assessment:
    accuracy: float
    lower: float
    upper: float
    measured_on: str  # which votes the accuracy speaks of
    pairs: int  # decided, held out
    thumbs: int
    concordance: float | None  # of thumbs; None without both kinds
    calibration_error: float | None  # expected, over decided pairs
    reliability: list[tuple[float, float, int]] = field(default_factory=list)  # predicted, observed, votes


@torch.no_grad()
def assess(model: RewardModel, votes: Sequence[VoteModel], held_out: Sequence[VoteExample]) -> Assessment:
    pairs = [e for e in held_out if isinstance(e, PairExample) and e.outcome in (LEFT, RIGHT)]
    thumbs = [e for e in held_out if isinstance(e, ThumbExample)]
    right = np.zeros(0)
    calibration: float | None = None
    reliability: list[tuple[float, float, int]] = []
    if pairs:
        # Left and right as neighbours, so that they share their prompt.
        prompts = [e.prompt for e in pairs for _ in range(2)]
        scores_MB = model.score(prompts, [reply for e in pairs for reply in (e.left, e.right)])
        left_MP, right_MP = scores_MB[:, 0::2], scores_MB[:, 1::2]
        outcome = np.array([e.outcome == LEFT for e in pairs])
        right = ((left_MP - right_MP).mean(0).numpy() > 0) == outcome
        calibration, reliability = _calibration(_left_probability(model, votes, left_MP, right_MP), outcome)
    concordance, interval = None, (0.0, 1.0)
    if thumbs:
        scores = model.score([e.prompt for e in thumbs], [e.reply for e in thumbs]).mean(0).numpy()
        concordance, interval = _concordance(scores, np.array([e.up for e in thumbs]))
    if len(pairs) >= 20 or concordance is None:
        shares = _independent(pairs)
        accuracy = float((right * shares).sum() / shares.sum()) if pairs else 0.5
        trials = round(float(shares.sum()))
        lower, upper = wilson(accuracy * trials, trials)
        measured_on = "decided pairs"
    else:
        accuracy, (lower, upper), measured_on = concordance, interval, "thumbs, by concordance"
    return Assessment(
        accuracy, lower, upper, measured_on, len(pairs), len(thumbs), concordance, calibration, reliability
    )


def _independent(pairs: Sequence[PairExample]) -> np.ndarray:
    """How many pairs each is worth: those of a ranking of K replies are worth K − 1 together (`trainer.rankings`)."""
    counts = Counter(pair.ranking for pair in pairs if pair.ranking is not None)
    replies: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for pair in pairs:
        if pair.ranking is not None:
            replies[pair.ranking].update((tuple(pair.left), tuple(pair.right)))
    return np.array(
        [
            1.0 if name is None else min(1.0, (len(replies[name]) - 1) / counts[name])
            for name in (pair.ranking for pair in pairs)
        ]
    )


def _left_probability(
    model: RewardModel, votes: Sequence[VoteModel], left_MP: torch.Tensor, right_MP: torch.Tensor
) -> np.ndarray:
    """P(left | decided), averaged over members; scores are taken back to the units in which they were fitted."""
    probabilities = []
    for member, vote_model in enumerate(votes):
        gain, shift = float(model.gain_M[member]), float(model.shift_M[member])
        left_P, right_P = (left_MP[member] - shift) / gain, (right_MP[member] - shift) / gain
        left, other, _ = pair_probabilities(left_P, right_P, vote_model.position, vote_model.tie).unbind(-1)
        probabilities.append((left / (left + other)).numpy())
    return np.asarray(np.mean(probabilities, axis=0))


def _calibration(
    predicted: np.ndarray, outcome: np.ndarray, bins: int = 10
) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error over equal-width bins, and the bins."""
    index = np.clip((predicted * bins).astype(int), 0, bins - 1)
    error, rows = 0.0, []
    for each in range(bins):
        chosen = index == each
        count = int(chosen.sum())
        if count:
            mean, observed = float(predicted[chosen].mean()), float(outcome[chosen].mean())
            rows.append((mean, observed, count))
            error += count / len(predicted) * abs(mean - observed)
    return error, rows


def _concordance(scores: np.ndarray, ups: np.ndarray) -> tuple[float | None, tuple[float, float]]:
    """How often an upvoted reply scores above a downvoted one, a tie counting a half; None without both kinds."""
    up, down = scores[ups > 0.5], scores[ups < 0.5]
    if not len(up) or not len(down):
        return None, (0.0, 1.0)
    share = float(((up[:, None] > down[None, :]) + 0.5 * (up[:, None] == down[None, :])).mean())
    return share, concordance_interval(share, len(up), len(down))
