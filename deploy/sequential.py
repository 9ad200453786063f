"""Intervals and tests that hold at every look, however often somebody looks. Pure: arrays in, bounds out.

An ordinary interval is right at one look that was fixed beforehand; looked at after every vote, it excludes the truth
sooner or later. The bounds here are wrong at any look at all, ever, with probability at most `alpha` each.

The unit is the user, because users are what is assigned to an arm and one user's votes are alike. Each user counts
once, with the mean of their own votes (never the sum: then one heavy voter would be the arm, and the variance of a
ratio of totals that one cluster dominates is far too small). What is estimated is the effect on an average user.

For an estimate D of an effect with variance v, the Gaussian mixture over effects with the scale tau gives the bound

    D +- sqrt(2 v (v + tau^2) / tau^2 * log(1 + sqrt((v + tau^2) / v) / (2 alpha)))

(Howard, Ramdas, McAuliffe and Sekhon 2021, arXiv 1810.08240, the one-sided normal mixture boundary, with intrinsic time
1 / v and rho = 1 / tau^2; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, arXiv 2103.06476, for its use with an
estimated variance). It is tightest where an effect of about tau is just being told from none. It is asymptotic in the
number of users, so nothing is said of fewer than `MIN_USERS`; and the theory has users arrive one after another, each
with all they will say, whereas here their means go on moving as they vote. What that does to the error rate is measured
by `deploy.simulation`. There is no running intersection: each look reads the whole log again, in which a late vote may
have arrived and another been withdrawn.

Both counting tests are Bayes factors of one share against a mixture of others. Under the null they are martingales that
start at 1, so the chance that they ever reach 1 / alpha is at most alpha (Ville), exactly and from the first user on:
Lindon and Malek 2022, arXiv 2011.03567.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincc, betaln

Floats = NDArray[np.float64]

MIN_USERS = 30
"""In each arm. With fewer, a mean of bounded scores is not near enough to normal for any of this."""

_PRIOR_USERS = 100.0  # how closely the sample ratio's alternatives lie around what it should be


@dataclass(frozen=True)
class Interval:
    estimate: float
    lower: float  # each bound by itself is wrong at any look, ever, with probability at most alpha
    upper: float
    users: int  # in the smaller arm


def half_width(variance: Any, alpha: float, scale: float) -> Any:
    """From the estimate to either bound; see the top of this module. Elementwise, `variance` being above 0."""
    spread = variance + scale**2
    return np.sqrt(2 * variance * spread / scale**2 * np.log1p(np.sqrt(spread / variance) / (2 * alpha)))


def mean_variance(users: Any, squares: Any, half_range: float) -> Any:
    """Of a mean over users, from the sum of squared deviations. Elementwise.

    One more deviation, of half the range of a score, is added: thirty users who all say the same are no proof that
    everybody does.
    """
    return (squares + half_range**2) / users**2


def mean(scores: Floats, *, low: float, high: float, alpha: float, scale: float) -> Interval | None:
    """Of one score a user, each between `low` and `high`. None: too few users."""
    users = len(scores)
    if users < MIN_USERS:
        return None
    estimate = float(scores.mean())
    variance = mean_variance(users, float(np.square(scores - estimate).sum()), (high - low) / 2)
    return _interval(estimate, variance, low, high, users, alpha=alpha, scale=scale)


def difference(
    users: NDArray[np.int64],
    strata: Floats,
    candidate: NDArray[np.bool_],
    scores: Floats,
    *,
    low: float,
    high: float,
    alpha: float,
    scale: float,
) -> Interval | None:
    """Mean score of the candidate's users less that of the stable policy's, between strata never, within each always.

    A step of the rollout is a stratum: were steps pooled, a bad week in which few met the candidate would count as
    better for the candidate. Stratum k weighs n_k m_k / (n_k + m_k), as in Mantel and Haenszel's estimate. The variance
    is that of the linearised estimate, a user's part in all strata and arms being one summand, so that somebody who
    moves from one arm to the other, or is seen in every step, is no two people.

    Args:
        users: who each score is of, numbered from 0; at most one score for a user, a stratum and an arm.
        strata, candidate: in which step, and whether in the candidate's arm.
        scores: each between `low` and `high`.

    Returns:
        None with too few users in an arm; strata with one arm alone do not count.
    """
    influence = np.zeros(int(users.max()) + 1 if len(users) else 0)
    counted = np.zeros(len(users), dtype=bool)
    effect = weights = padding = 0.0
    for stratum in np.unique(strata):
        arms = [(strata == stratum) & arm for arm in (candidate, ~candidate)]
        sizes = [int(arm.sum()) for arm in arms]
        if 0 in sizes:
            continue
        weight = sizes[0] * sizes[1] / sum(sizes)
        weights += weight
        for arm, size, sign in zip(arms, sizes, (weight, -weight), strict=True):
            average = float(scores[arm].mean())
            effect += sign * average
            influence[users[arm]] += sign * (scores[arm] - average) / size
            padding += mean_variance(size, 0.0, weight * (high - low) / 2)
            counted |= arm
    fewest = min(len(np.unique(users[counted & arm])) for arm in (candidate, ~candidate))
    if fewest < MIN_USERS:
        return None
    variance = (float(influence @ influence) + padding) / weights**2
    return _interval(effect / weights, variance, low - high, high - low, fewest, alpha=alpha, scale=scale)


def _interval(
    estimate: float, variance: float, low: float, high: float, users: int, *, alpha: float, scale: float
) -> Interval:
    reach = float(half_width(variance, alpha, scale))
    return Interval(estimate, max(low, estimate - reach), min(high, estimate + reach), users)


def mismatch(candidate: Any, users: Any, share: float) -> Any:
    """The log of the evidence that `candidate` of `users` are not a random `share` of them. Elementwise.

    Each user is one trial at their first reply, so the order in which they come does not matter, nor how much they
    say. The alternatives are Beta(100 share, 100 (1 - share)): the sequential multinomial test with two outcomes.
    """
    a, b = _PRIOR_USERS * share, _PRIOR_USERS * (1 - share)
    return betaln(a + candidate, b + users - candidate) - betaln(a, b) - _log_null(candidate, users, share)


def excess(candidate: Any, affected: Any, share: float) -> Any:
    """The log of the evidence that more than `share` of the users something bad happened to are the candidate's.

    Users are in the candidate's arm with probability `share`. If the candidate does no harm, so is each user who
    meets an error (the first of theirs counts), whatever the rate of errors is and however it changes. The
    alternatives are all larger shares alike: a few errors in a small canary, and none beside it, are enough.
    """
    a, b = candidate + 1.0, affected - candidate + 1.0
    with np.errstate(divide="ignore"):  # far fewer than the share: no evidence at all, and minus infinity says so
        tail = np.log(betaincc(a, b, share))
    return betaln(a, b) + tail - np.log1p(-share) - _log_null(candidate, affected, share)


def _log_null(candidate: Any, users: Any, share: float) -> Any:
    return candidate * np.log(share) + (users - candidate) * np.log1p(-share)
