"""Who votes, and on what: inverse-propensity weights, since people who vote are not all people.

    w = 1 / max(P(vote | user, reply), floor),  scaled to a mean of 1 for each kind of vote

A vote that was likely to be cast stands for itself; one by somebody who rarely votes, or about a reply of a kind that
people rarely vote on, stands for the many that were not cast (arXiv 2603.18736; Horvitz and Thompson 1952). The floor
bounds what a single vote can stand for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from feedback.exposures import Exposure
from feedback.sample import CorrectionSample, PairSample, SampleSet, ThumbSample
from feedback.schema import TargetKind
from trainer.surfaces import FORMAT, LANGUAGE, LENGTH, surfaces

S = TypeVar("S", ThumbSample, PairSample, CorrectionSample)
SHRINKAGE = 10.0
"""Exposures that everybody's rate counts for in one user's."""
RIDGE = 10.0
STEPS = 20


class Propensity:
    """P(vote) = σ(logit of the user's own rate + b + w·x): x is the surface of what was shown; b and w are fitted.

    A user's rate is shrunk towards everybody's. Shapes: E exposures, F features.
    """

    def __init__(self, shown: Sequence[Exposure]) -> None:
        seen = Counter(exposure.user_id for exposure in shown)
        cast = Counter(exposure.user_id for exposure in shown if exposure.voted)
        # Half a vote more and less, so that a log in which everybody votes on everything has a finite logit.
        self.rate = (cast.total() + 0.5) / (seen.total() + 1.0)
        self.rates = {user: (cast[user] + SHRINKAGE * self.rate) / (count + SHRINKAGE) for user, count in seen.items()}
        raw_EF = np.array([_features(exposure.texts) for exposure in shown]).reshape(len(shown), 3)
        self.mean_F = raw_EF.mean(0) if len(shown) else np.zeros(3)
        self.std_F = np.maximum(raw_EF.std(0), 1e-3) if len(shown) else np.ones(3)
        self.bias, self.slopes_F = _fit(
            (raw_EF - self.mean_F) / self.std_F,
            np.array([self._own_logit(exposure.user_id) for exposure in shown]),
            np.array([exposure.voted for exposure in shown], dtype=float),
        )

    def probability(self, user_id: str, texts: Sequence[str]) -> float:
        """Of a vote by this user on this reply, or on these two sides."""
        x_F = (np.array(_features(texts)) - self.mean_F) / self.std_F
        return float(_sigmoid(self._own_logit(user_id) + self.bias + x_F @ self.slopes_F))

    def _own_logit(self, user_id: str) -> float:
        rate = self.rates.get(user_id, self.rate)
        return float(np.log(rate / (1.0 - rate)))


def reweighted(samples: SampleSet, shown: Sequence[Exposure], floor: float, most_per_user: float) -> SampleSet:
    """The samples with their weights times w, scaled kind by kind: how much a thumb weighs against a pair is another
    question. What was imported was shown to nobody here, and keeps its weight. A user's votes still weigh no more than
    `most_per_user` together: else whoever looks at much and votes on little would count for many."""
    models = {kind: Propensity([each for each in shown if each.kind is kind]) for kind in TargetKind}

    def weighted(part: Sequence[S], kind: TargetKind) -> list[S]:
        inverse = [
            1.0 / max(models[kind].probability(sample.user_id, _texts(sample)), floor)
            if sample.source == "chat"
            else None
            for sample in part
        ]
        mean = float(np.mean([value for value in inverse if value is not None] or [1.0]))
        return [
            sample if value is None else replace(sample, weight=sample.weight * value / mean)
            for sample, value in zip(part, inverse, strict=True)
        ]

    thumbs = weighted(samples.thumbs, TargetKind.REPLY)
    pairs = weighted(samples.pairs, TargetKind.COMPARISON)
    corrections = weighted(samples.corrections, TargetKind.REPLY)
    by_vote = {(each.user_id, each.vote_id): each.weight for each in (*corrections, *thumbs, *pairs)}
    total: dict[str, float] = defaultdict(float)
    for (user_id, _), weight in by_vote.items():
        total[user_id] += weight

    # Somebody whose only vote was between twice the same reply weighs nothing: there is no share of that.
    scale = {user_id: most_per_user / weight for user_id, weight in total.items() if weight > most_per_user}

    def capped(part: Sequence[S]) -> list[S]:
        return [replace(each, weight=each.weight * scale.get(each.user_id, 1.0)) for each in part]

    return replace(samples, thumbs=capped(thumbs), pairs=capped(pairs), corrections=capped(corrections))


def _texts(sample: ThumbSample | PairSample | CorrectionSample) -> list[str]:
    return [sample.left.text, sample.right.text] if isinstance(sample, PairSample) else [sample.text]


def _features(texts: Sequence[str]) -> list[float]:
    """Means over the sides; characters stand for tokens, which imported text does not have."""
    seen = [surfaces(text, len(text)) for text in texts]
    return [float(np.mean([side[name] for side in seen])) for name in (LENGTH, LANGUAGE, FORMAT)]


def _fit(x_EF: np.ndarray, offset_E: np.ndarray, voted_E: np.ndarray) -> tuple[float, np.ndarray]:
    """b and w: logistic regression with an offset, and a ridge on w, by Newton's method."""
    if not len(x_EF):
        return 0.0, np.zeros(x_EF.shape[1])
    design = np.column_stack([np.ones(len(x_EF)), x_EF])
    ridge = np.diag([1e-3] + [RIDGE] * x_EF.shape[1])
    found = np.zeros(design.shape[1])
    for _ in range(STEPS):
        p_E = _sigmoid(offset_E + design @ found)
        hessian = (design * (p_E * (1 - p_E))[:, None]).T @ design + ridge
        found = found - np.linalg.solve(hessian, design.T @ (p_E - voted_E) + ridge @ found)
    return float(found[0]), found[1:]


def _sigmoid(x: np.ndarray | float) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(x))))
