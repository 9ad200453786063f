"""Intervals for proportions and means. All are two-sided, 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
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
