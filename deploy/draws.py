"""Which two policies are compared next, and with which probability. Pure.

The pair that is drawn most is the one whose next choice narrows the widest interval of the leaderboard most. A part of
all comparisons is drawn from every pair alike, so that each pair goes on being seen whatever the estimates say, and
every pair's probability is above 0: what is logged can be weighed. Source of the idea: Chiang et al. 2024, "Chatbot
Arena", arXiv 2403.04132, section 5; there pairs are drawn in proportion, here the best one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from deploy.bradley_terry import MIN_USERS, Fit, information

Pair = tuple[str, str]


def odds(pool: Sequence[str], favourite: Pair | None, uniform: float) -> dict[Pair, float]:
    """Probability of each pair of the pool; empty for fewer than two. Without a favourite all are alike."""
    pairs = list(combinations(sorted(set(pool)), 2))
    if not pairs:
        return {}
    favourite = favourite and (min(favourite), max(favourite))
    floor = uniform if favourite in pairs else 1.0
    return {pair: floor / len(pairs) + (1 - floor) * (pair == favourite) for pair in pairs}


def most_telling(fit: Fit, names: Sequence[str], pool: Sequence[str]) -> Pair | None:
    """The pair of the pool whose next choice takes most off the variance of the strength that is known least.

    A strength that fewer than MIN_USERS people judged is known less than any other. `names` are those of the fit.
    """
    at = {name: number for number, name in enumerate(names)}
    known = [at[name] for name in sorted(set(pool)) if name in at]
    if len(known) < 2:
        return None
    variances = np.diag(fit.covariance)
    least = min(known, key=lambda k: (min(int(fit.users[k]), MIN_USERS), -variances[k], k))

    def gain(pair: tuple[int, int]) -> float:
        first, second = pair
        told = information(float(fit.strengths[first]), float(fit.strengths[second]), fit.tie)
        shared = fit.covariance[least, first] - fit.covariance[least, second]
        spread = variances[first] + variances[second] - 2 * fit.covariance[first, second]
        return float(told * shared**2 / (1 + told * spread))

    first, second = max((pair for pair in combinations(known, 2) if least in pair), key=gain)
    return names[first], names[second]
