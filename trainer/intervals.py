"""Intervals for proportions, concordances and means. All are two-sided, 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

Z95 = 1.959964


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Of a proportion (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = (share + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = Z95 / (1 + Z95**2 / trials) * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    return centre - half, centre + half


def concordance_interval(share: float, ups: int, downs: int) -> tuple[float, float]:
    """Of how often one of `ups` values is above one of `downs` others (the area under the curve).

    As Wilson's: all values that lie within 1.96 of their own standard deviations of what was measured (Newcombe 2006,
    doi 10.1002/sim.2324, method 5, with the variance of Hanley and McNeil 1982 for two samples of their mean size). A
    bootstrap has no width where all are ranked rightly, which few values often are by chance.
    """
    if ups == 0 or downs == 0:
        return 0.0, 1.0
    others = (ups + downs) / 2 - 1

    def deviation(at: float) -> float:
        spread = 1 + others * ((1 - at) / (2 - at) + at / (1 + at))
        return math.sqrt(at * (1 - at) * spread / (ups * downs))

    def lower(measured: float) -> float:
        if measured <= 0:
            return 0.0
        return float(brentq(lambda at: measured - at - Z95 * deviation(at), 0.0, min(measured, 1 - 1e-12)))

    return lower(share), 1 - lower(1 - share)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, lower, upper) by Student's t, kept within 0..1. Give one value for each independent unit: user, prompt."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, 0.0, 1.0
    half = float(stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array)))
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def rise(values: Sequence[float]) -> tuple[float, float, float]:
    """(estimate, lower, upper) of what a straight line through these values, in equal steps, gains from the first to
    the last; by least squares and Student's t. Raises ValueError for fewer than three."""
    if len(values) < 3:
        raise ValueError(f"a line and its doubt need three values or more, not {len(values)}")
    steps, heights = np.linspace(-0.5, 0.5, len(values)), np.asarray(values, dtype=float)
    spread = float(steps @ steps)
    slope = float(steps @ heights) / spread
    missed = heights - heights.mean() - slope * steps
    half = float(stdtrit(len(values) - 2, 0.975) * math.sqrt(missed @ missed / (len(values) - 2) / spread))
    return slope, slope - half, slope + half
