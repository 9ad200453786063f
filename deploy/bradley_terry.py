"""Strengths from choices between two: Bradley and Terry's model with ties, a side and what the replies look like. Pure.

A choice between left and right has the utility  u = strength(left) - strength(right) + side + effects . (left - right)
and is left, level or right with odds  exp(u / 2) : tie : exp(-u / 2)  (Davidson 1970, Journal of the American
Statistical Association 65, 317-328). Written so, it is a multinomial logit, whose likelihood has one maximum. Every
coefficient has a wide normal prior: it fixes where strengths are 0 (their mean), and keeps one that has won every
choice finite.

One person's choices are alike, so variances are those of the jackknife that leaves out one user at a time (CR3 of Bell
and McCaffrey 2002; one Newton step for each user, which is exact for a linear model). Unlike the plain sandwich it
sees the user without whom a strength would be unknown. A user's choices weigh at most as much as `MAX_PER_USER`.

What is not here: where choices come from (`deploy.leaderboard`) and which pair is shown next (`deploy.draws`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_SD = 2.0
"""Of every coefficient, in nats: nine in ten strengths within 3.3 of the mean."""
MAX_PER_USER = 50.0
MIN_USERS = 10
"""Fewer people's choices bear no bounds."""
_CONFIDENCE = 0.95
_STEPS = 50


@dataclass(frozen=True)
class Choices:
    """One row for each choice. `left` and `right` count from 0 to `entries` - 1."""

    entries: int
    users: Ints  # whose, counted from 0
    left: Ints
    right: Ints
    outcome: Ints  # 1: left, -1: right, 0: level
    looks: Floats  # [choices, effects]: left less right


@dataclass(frozen=True)
class Estimate:
    estimate: float
    lower: float | None  # None: too few users
    upper: float | None


@dataclass(frozen=True)
class Fit:
    entries: int
    coefficients: Floats  # strengths, the side, the effects, and the log of the tie's odds at u = 0
    covariance: Floats
    users: Ints  # who chose between this entry and another
    all_users: int

    @property
    def strengths(self) -> Floats:
        return self.coefficients[: self.entries]

    @property
    def tie(self) -> float:
        """The odds of level to (left and right together, halved), between equals."""
        return float(np.exp(self.coefficients[-1]))

    def strength(self, entry: int) -> Estimate:
        return self._bounded(entry, int(self.users[entry]))

    def effect(self, number: int) -> Estimate:
        """0: of the left side; then those of the looks."""
        return self._bounded(self.entries + number, self.all_users)

    def win_rate(self, strength: float) -> float:
        """Wins and half of what is level, against one of strength 0 that looks alike."""
        won, level, lost = np.exp(strength / 2), self.tie, np.exp(-strength / 2)
        return float((won + level / 2) / (won + level + lost))

    def _bounded(self, at: int, users: int) -> Estimate:
        value = float(self.coefficients[at])
        if users < MIN_USERS:
            return Estimate(value, None, None)
        reach = float(stdtrit(users - 1, (1 + _CONFIDENCE) / 2) * np.sqrt(self.covariance[at, at]))
        return Estimate(value, value - reach, value + reach)


def fit(choices: Choices) -> Fit:
    """The maximum, by Newton's method with halved steps where a whole one would go too far."""
    design = _design(choices)
    weights = _weights(choices.users)
    width = design.shape[1] + 1
    prior = np.eye(width) / PRIOR_SD**2
    at = np.zeros(width)
    value = _value(at, design, choices.outcome, weights)
    for _ in range(_STEPS):
        scores, curvature = _scores(at, design, choices.outcome), _curvature(at, design)
        step = np.linalg.solve(_hessian(design, curvature, weights) + prior, weights @ scores - prior @ at)
        while (there := _value(at + step, design, choices.outcome, weights)) < value - 1e-12 and np.abs(step).max() > 0:
            step = step / 2
        at, value = at + step, there
        if np.abs(step).max() < 1e-9:
            break
    covariance = _covariance(at, design, choices, weights, prior)
    taken = [np.unique(choices.users[(choices.left == k) | (choices.right == k)]) for k in range(choices.entries)]
    users = np.array([len(each) for each in taken], dtype=np.int64)
    return Fit(choices.entries, at, covariance, users, len(np.unique(choices.users)))


def information(first: float, second: float, tie: float) -> float:
    """What one choice between two of these strengths tells about their difference, in nats to the power of -2."""
    won, level, lost = np.exp((first - second) / 2), tie, np.exp((second - first) / 2)
    all_odds = won + level + lost
    mean = (won - lost) / all_odds
    return float(((won + lost) / all_odds - mean**2) / 4)


def _design(choices: Choices) -> Floats:
    """[choices, entries + 1 + effects]: du / d(coefficient)."""
    rows = np.arange(len(choices.users))
    design = np.zeros((len(rows), choices.entries + 1 + choices.looks.shape[1]))
    design[rows, choices.left] += 1.0
    design[rows, choices.right] -= 1.0
    design[:, choices.entries] = 1.0
    design[:, choices.entries + 1 :] = choices.looks
    return design


def _weights(users: Ints) -> Floats:
    counts = np.bincount(users) if len(users) else np.zeros(0)
    return np.minimum(1.0, MAX_PER_USER / counts[users])


def _chances(at: Floats, design: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of left, level and right, and the log of their odds' sum."""
    half = design @ at[:-1] / 2
    logits = np.stack([half, np.full_like(half, at[-1]), -half])
    total = np.logaddexp.reduce(logits, axis=0)
    won, level, lost = np.exp(logits - total)
    return won, level, lost, total


def _value(at: Floats, design: Floats, outcome: Ints, weights: Floats) -> float:
    *_, total = _chances(at, design)
    said = outcome * (design @ at[:-1]) / 2 + (outcome == 0) * at[-1]
    return float(weights @ (said - total) - at @ at / (2 * PRIOR_SD**2))


def _scores(at: Floats, design: Floats, outcome: Ints) -> Floats:
    """[choices, coefficients]: the gradient of each choice's log likelihood."""
    won, level, lost, _ = _chances(at, design)
    return np.column_stack([((outcome - (won - lost)) / 2)[:, None] * design, (outcome == 0) - level])


def _curvature(at: Floats, design: Floats) -> tuple[Floats, Floats, Floats]:
    """Of u with itself, of u with the tie, of the tie with itself; each [choices]."""
    won, level, lost, _ = _chances(at, design)
    mean = won - lost
    return (won + lost - mean**2) / 4, -mean * level / 2, level * (1 - level)


def _hessian(design: Floats, curvature: tuple[Floats, Floats, Floats], weights: Floats) -> Floats:
    own, cross, tie = (weights * each for each in curvature)
    last = cross @ design
    return np.block([[(design * own[:, None]).T @ design, last[:, None]], [last[None, :], np.array([[tie.sum()]])]])


def _covariance(at: Floats, design: Floats, choices: Choices, weights: Floats, prior: Floats) -> Floats:
    scores = weights[:, None] * _scores(at, design, choices.outcome)
    curvature = _curvature(at, design)
    hessian = _hessian(design, curvature, weights) + prior
    order = np.argsort(choices.users, kind="stable")
    starts = np.flatnonzero(np.diff(choices.users[order], prepend=-1))
    moves = []
    for rows in np.split(order, starts[1:]) if len(order) else []:
        mine = (curvature[0][rows], curvature[1][rows], curvature[2][rows])
        left_out = hessian - _hessian(design[rows], mine, weights[rows])
        moves.append(np.linalg.solve(left_out, scores[rows].sum(0)))
    moved = np.array(moves).reshape(len(moves), len(at))
    inverse = np.linalg.inv(hessian)
    # The prior's part: what nobody has chosen is as uncertain as it was before.
    spread = moved.T @ moved * max(len(moves) - 1, 0) / max(len(moves), 1) + inverse @ prior @ inverse
    # Of strengths less their mean, which no choice says anything about.
    centred = np.eye(len(at))
    centred[: choices.entries, : choices.entries] -= 1 / choices.entries
    return np.asarray(centred @ spread @ centred.T)
