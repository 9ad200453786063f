"""What moves the reward model: which tokens of a reply, which surfaces of replies, which reasons that people gave.

A score is read after every token (`trainer.reward_model.readout`), so a token's contribution is what the score gains by
it; the contributions of a reply sum to its score less that of saying nothing.

Shapes: B replies, R tokens of the longest, M members, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit

from trainer.batches import Batch
from trainer.device import passes
from trainer.examples import ThumbExample, VoteExample
from trainer.reward_model import RewardModel
from trainer.sampler import Rollout
from trainer.surfaces import surfaces

FEWEST_OF_A_REASON = 5
BROKEN = "\ufffd"  # what half of a character decodes to


@dataclass(frozen=True)
class Effect:
    """On the score, in standard deviations of the reference, with a 95 % interval."""

    name: str
    effect: float
    lower: float
    upper: float
    replies: int


@dataclass(frozen=True)
class Piece:
    """Some text of a reply, and what the score gains by it."""

    text: str
    gain: float


@torch.no_grad()
def contributions(model: RewardModel, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """For each reply, what each of its tokens adds to the ensemble's mean score."""
    device = model.backbone.device
    batch = Batch.of([r.prompt for r in rollouts], [r.reply for r in rollouts], device)
    result: list[list[float]] = [[] for _ in rollouts]
    for part in batch.by_length(passes(device).scoring_tokens):
        gains_BR = model.running_scores(model.shared(part.batch), part.batch).mean(0).diff(dim=1)
        for row, gains in zip(part.replies.tolist(), gains_BR.tolist(), strict=True):
            result[row] = gains[: len(rollouts[row].reply)]
    return result


def pieces(reply: Sequence[int], gains: Sequence[float], decode: Callable[[Sequence[int]], str]) -> list[Piece]:
    """A reply's text in the pieces that its tokens are; tokens that are parts of one character go together."""
    found: list[Piece] = []
    shown, waiting = "", 0.0
    for end, gain in enumerate(gains, 1):
        text = decode(reply[:end])
        waiting += gain
        if text.endswith(BROKEN) and end < len(reply):
            continue
        found.append(Piece(text[len(shown) :], waiting))
        shown, waiting = text, 0.0
    return found


def surface_effects(scores: np.ndarray, texts: Sequence[str], tokens: Sequence[int]) -> list[Effect]:
    """What each surface does to the score while the others stay as they are: least squares on all of them together.

    Surfaces that all replies share, or none has, are left out.
    """
    rows = [surfaces(text, count) for text, count in zip(texts, tokens, strict=True)]
    table_BF = np.array([list(row.values()) for row in rows])
    varied = [index for index in range(table_BF.shape[1]) if table_BF[:, index].std() > 1e-9]
    design = np.column_stack([np.ones(len(rows)), table_BF[:, varied]])
    freedom = len(rows) - design.shape[1]
    if not varied or freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return []
    slopes, *_ = np.linalg.lstsq(design, scores, rcond=None)
    residual = scores - design @ slopes
    variances = (residual @ residual / freedom) * np.linalg.inv(design.T @ design).diagonal()
    halves = stdtrit(freedom, 0.975) * np.sqrt(variances)
    names = list(rows[0])
    return [
        Effect(
            names[index], float(slope), float(slope - half), float(slope + half), int((table_BF[:, index] > 0).sum())
        )
        for index, slope, half in zip(varied, slopes[1:], halves[1:], strict=True)
    ]


def reason_effects(model: RewardModel, examples: Sequence[VoteExample]) -> list[Effect]:
    """The mean score of the replies that people tagged with a reason, less that of all replies with a thumb."""
    thumbs = [example for example in examples if isinstance(example, ThumbExample)]
    if not thumbs:
        return []
    scores = model.score([e.prompt for e in thumbs], [e.reply for e in thumbs]).mean(0).numpy()
    effects = []
    for reason in sorted({reason for example in thumbs for reason in example.reasons}):
        tagged = scores[[reason in example.reasons for example in thumbs]]
        if len(tagged) >= FEWEST_OF_A_REASON:
            effect = float(tagged.mean() - scores.mean())
            half = float(stdtrit(len(tagged) - 1, 0.975) * tagged.std(ddof=1) / math.sqrt(len(tagged)))
            effects.append(Effect(reason, effect, effect - half, effect + half, len(tagged)))
    return sorted(effects, key=lambda each: -each.effect)
