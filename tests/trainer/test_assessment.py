"""Intervals and calibration against known values."""

import numpy as np
import pytest
from scipy import stats

from trainer.assessment import _calibration, _concordance
from trainer.intervals import concordance_interval, mean_interval, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "lower", "upper"),
    # Newcombe 1998, table I, the score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(successes: int, trials: int, lower: float, upper: float) -> None:
    assert wilson(successes, trials) == pytest.approx((lower, upper), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (7, 10), (500, 501), (40, 40)])
def test_wilson_against_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_without_votes_everything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_calibration_error_of_a_known_case() -> None:
    predicted = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    outcome = np.array([True, True, False, False, False, False])
    error, rows = _calibration(predicted, outcome)
    assert error == pytest.approx(4 / 6 * 0.4 + 2 / 6 * 0.1)
    assert rows == [pytest.approx((0.1, 0.0, 2)), pytest.approx((0.9, 0.5, 4))]


def test_a_certain_prediction_falls_in_the_last_bin() -> None:
    error, rows = _calibration(np.array([1.0, 0.0]), np.array([True, False]))
    assert error == 0.0
    assert [count for _, _, count in rows] == [1, 1]


def test_concordance_is_the_area_under_the_curve_and_ties_count_half() -> None:
    scores, ups = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 1.0, 0.0, 1.0])
    measured, bounds = _concordance(scores, ups)
    assert measured == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert bounds == concordance_interval(measured, 2, 2)


def test_concordance_needs_both_kinds() -> None:
    assert _concordance(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == (None, (0.0, 1.0))


@pytest.mark.parametrize(("ups", "downs"), [(1, 1), (5, 1), (11, 1), (10, 2), (22, 3), (6, 6), (20, 20)])
def test_scores_by_chance_are_seldom_told_from_chance(ups: int, downs: int) -> None:
    """Two and a half times in a hundred is what the bound promises; a few votes of one kind must not pass by luck."""
    rng, labels = np.random.default_rng(0), np.array([1.0] * ups + [0.0] * downs)
    passed = [_concordance(rng.normal(size=ups + downs), labels)[1][0] > 0.5 for _ in range(2000)]
    assert np.mean(passed) < 0.04


def test_the_interval_of_one_value_of_each_kind_is_wilsons() -> None:
    for share in (0.0, 0.5, 1.0):
        assert concordance_interval(share, 1, 1) == pytest.approx(wilson(share, 1), abs=1e-9)


def test_the_interval_of_a_concordance_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(1), []
    labels = np.array([1.0] * 60 + [0.0] * 25)
    truth = float(stats.norm.cdf(1.0 / np.sqrt(2)))  # upvoted replies lie a standard deviation higher
    for _ in range(1000):
        _, (lower, upper) = _concordance(rng.normal(size=85) + labels, labels)
        held.append(lower <= truth <= upper)
    assert 0.93 < np.mean(held) < 0.98


def test_a_mean_with_students_interval_within_its_bounds() -> None:
    values = np.array([0.5, 0.75, 1.0, 0.25, 0.5])
    mean, lower, upper = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, lower, upper) == pytest.approx((0.6, expected.low, expected.high))
    assert mean_interval(np.array([1.0, 1.0, 0.9]))[2] == 1.0
    assert mean_interval(np.array([0.7])) == (0.7, 0.0, 1.0)
