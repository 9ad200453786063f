"""The fit against made-up people whose strengths are known, and against sums that can be done by hand."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from deploy.bradley_terry import MAX_PER_USER, MIN_USERS, PRIOR_SD, Choices, Fit, fit, information

TRUE = np.array([0.6, 0.2, -0.3, -0.5])  # their mean is 0
SIDE, TIE, EFFECT = 0.2, 0.6, 0.4


def people(users: int, choices: int, seed: int, *, taste: float = 0.5) -> Choices:
    """Choices between four entries, of people who differ in taste and very much in how much they say."""
    rng = np.random.default_rng(seed)
    tastes, activity = rng.normal(0, taste, (users, 4)), rng.lognormal(0, 1, users)
    user = rng.choice(users, choices, p=activity / activity.sum())
    left = rng.integers(0, 4, choices)
    right = (left + rng.integers(1, 4, choices)) % 4
    looks = rng.normal(0, 1, (choices, 1))
    utility = TRUE[left] + tastes[user, left] - TRUE[right] - tastes[user, right] + SIDE + EFFECT * looks[:, 0]
    odds = np.stack([np.exp(utility / 2), np.full(choices, TIE), np.exp(-utility / 2)])
    drawn = rng.random(choices) * odds.sum(0)
    outcome = np.where(drawn < odds[0], 1, np.where(drawn < odds[0] + odds[1], 0, -1))
    return Choices(4, np.unique(user, return_inverse=True)[1], left, right, outcome, looks)


def by_hand(rows: list[tuple[int, int, int, int]], entries: int = 2) -> Fit:
    """(user, left, right, outcome)"""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return fit(Choices(entries, *columns, looks=np.zeros((len(rows), 0))))


def test_what_is_true_is_found() -> None:
    found = fit(people(4000, 40_000, 1, taste=0.0))
    assert found.strengths == pytest.approx(TRUE, abs=0.05)
    assert found.effect(0).estimate == pytest.approx(SIDE, abs=0.05)
    assert found.effect(1).estimate == pytest.approx(EFFECT, abs=0.05)
    assert found.tie == pytest.approx(TIE, abs=0.03)


def test_the_maximum_is_one_by_another_way() -> None:
    choices = people(40, 300, 2)
    rows = range(300)
    counts = np.bincount(choices.users)

    def loss(at: np.ndarray) -> float:
        total = float(at @ at) / (2 * PRIOR_SD**2)
        for n in rows:
            u = at[choices.left[n]] - at[choices.right[n]] + at[4] + at[5] * choices.looks[n, 0]
            odds = {1: math.exp(u / 2), 0: math.exp(at[6]), -1: math.exp(-u / 2)}
            weight = min(1.0, MAX_PER_USER / counts[choices.users[n]])
            total -= weight * math.log(odds[int(choices.outcome[n])] / sum(odds.values()))
        return total

    other = minimize(loss, np.zeros(7), method="BFGS").x
    assert fit(choices).coefficients == pytest.approx(other, abs=1e-4)


def test_bounds_hold_for_people_who_say_very_different_amounts() -> None:
    """Clustered by user: were each choice a person, far fewer than nine in ten would hold."""
    inside = said = 0
    for seed in range(120):
        found = fit(people(30, 300, 100 + seed))
        for entry, true in enumerate(TRUE):
            bounds = found.strength(entry)
            if bounds.lower is not None and bounds.upper is not None:
                said += 1
                inside += bounds.lower <= true <= bounds.upper
    assert said > 400
    assert 0.90 <= inside / said <= 0.99


def test_a_user_counts_once_however_much_they_say() -> None:
    crowd = [(user, user % 2, 1 - user % 2, 1) for user in range(40)]
    loud = crowd + [(40, 0, 1, 1)] * 5000
    assert by_hand(loud).strengths[0] < by_hand(crowd + [(40, 0, 1, 1)] * int(MAX_PER_USER)).strengths[0] + 1e-6
    alone = by_hand([(0, 0, 1, 1)] * 5000)
    assert alone.strength(0).lower is None, "one person is no crowd"


def test_few_people_bear_no_bounds_and_nobody_none_at_all() -> None:
    found = by_hand([(user, 0, 1, 1) for user in range(MIN_USERS - 1)], entries=3)
    assert found.strength(0).lower is None
    assert found.strength(2).estimate == 0.0
    assert found.covariance[2, 2] > found.covariance[0, 0], "what nobody has judged is known least"


def test_one_that_has_won_everything_stays_finite() -> None:
    found = by_hand([(user, user % 2, 1 - user % 2, 1 if user % 2 == 0 else -1) for user in range(60)])
    bounds = found.strength(0)
    assert 1.0 < bounds.estimate < 5.0
    assert bounds.lower is not None
    assert bounds.lower > 0.5


def test_the_side_is_not_held_against_who_stood_there() -> None:
    """Four in five prefer the left; one policy stands there three times as often."""
    rows = [(n, *((0, 1) if n % 4 else (1, 0)), -1 if n % 5 == 0 else 1) for n in range(400)]
    found = by_hand(rows)
    assert abs(found.strengths[0]) < 0.01
    assert found.effect(0).estimate == pytest.approx(math.log(4), abs=0.05)


def test_a_win_rate_counts_what_is_level_as_half() -> None:
    rows = [(n, n % 2, 1 - n % 2, (1, 0, -1, 0)[n % 4]) for n in range(400)]
    found = by_hand(rows)
    assert found.win_rate(0.0) == pytest.approx(0.5)
    assert found.win_rate(0.7) + found.win_rate(-0.7) == pytest.approx(1.0)
    assert found.win_rate(0.7) < 1 / (1 + math.exp(-0.7)), "ties draw towards one half"


def test_equals_tell_most() -> None:
    assert information(0.3, 0.3, 0.5) > information(1.0, -1.0, 0.5) > information(4.0, -4.0, 0.5)
    assert information(1.0, -1.0, 0.5) == pytest.approx(information(-1.0, 1.0, 0.5))
    assert information(0.0, 0.0, 1e-9) == pytest.approx(0.25)
