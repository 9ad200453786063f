"""The always-valid bounds and tests: each formula against another way to its number, then many made-up rollouts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from deploy import sequential
from deploy.decision import decide
from deploy.observed import Compared, Evidence, Manner, Served
from deploy.sequential import MIN_USERS, half_width
from deploy.settings import RolloutSettings
from deploy.simulation import SHARE, Rollouts, Scenario, simulate

NET = {"low": -1.0, "high": 1.0, "alpha": 0.015, "scale": 0.2}


def one_sided_mixture(distance: float, variance: float, scale: float) -> float:
    """The likelihood ratio against no effect, mixed over positive effects of this scale, by quadrature."""

    def integrand(effect: float) -> float:
        density = 2 * math.exp(-(effect**2) / (2 * scale**2)) / math.sqrt(2 * math.pi * scale**2)
        return density * math.exp((effect * distance - effect**2 / 2) / variance)

    peak = distance * scale**2 / (variance + scale**2)
    return float(quad(integrand, 0, 12 * scale, points=[peak], limit=500)[0])


@pytest.mark.parametrize("variance", [1e-4, 1e-3, 1e-2, 0.3])
@pytest.mark.parametrize("alpha", [0.001, 0.015, 0.05])
@pytest.mark.parametrize("scale", [0.1, 0.2])
def test_the_bound_is_where_the_mixture_reaches_one_over_alpha(variance: float, alpha: float, scale: float) -> None:
    reach = float(half_width(variance, alpha, scale))
    assert one_sided_mixture(reach, variance, scale) >= 1 / alpha
    assert one_sided_mixture(0.96 * reach, variance, scale) < 1 / alpha, "it is not much too wide either"


def test_the_bound_is_the_published_one() -> None:
    """Howard and others' own implementation: 27.66071 at intrinsic time 100, made for that time, at 5 % (exact)."""
    rho = 100 / (2 * math.log(1 / 0.1) + math.log(1 + 2 * math.log(1 / 0.1)))
    ours = 100 * float(half_width(1 / 100, 0.05, 1 / math.sqrt(rho)))
    assert 27.66071 <= ours < 1.01 * 27.66071


def test_the_bound_narrows_with_the_variance_and_widens_with_certainty() -> None:
    variances = np.geomspace(1e-6, 1.0, 200)
    assert (np.diff(half_width(variances, 0.05, 0.2)) > 0).all()
    assert (np.diff(half_width(0.01, np.geomspace(1e-4, 0.4, 50), 0.2)) < 0).all()
    ordinary = 1.645 * np.sqrt(variances)
    assert (half_width(variances, 0.05, 0.2) > ordinary).all(), "looking at any time costs width"


def test_a_mean_by_hand() -> None:
    found = sequential.mean(np.array([1.0] * 24 + [0.0] * 8), low=0.0, high=1.0, alpha=0.05, scale=0.1)
    assert found is not None
    assert (found.estimate, found.users) == (0.75, 32)
    reach = float(half_width((32 * 0.75 * 0.25 + 0.25) / 32**2, 0.05, 0.1))
    assert found.lower == pytest.approx(0.75 - reach)
    assert found.upper == min(1.0, 0.75 + reach)


def test_unanimous_users_are_no_certainty() -> None:
    found = sequential.mean(np.ones(MIN_USERS), low=0.0, high=1.0, alpha=0.05, scale=0.1)
    assert found is not None
    assert 0.5 < found.lower < 0.99
    assert sequential.mean(np.ones(MIN_USERS - 1), low=0.0, high=1.0, alpha=0.05, scale=0.1) is None


Row = tuple[int, float, bool, float]  # user, stratum, candidate, score


def difference(rows: list[Row]) -> sequential.Interval | None:
    users, strata, candidate, scores = (np.array(column) for column in zip(*rows, strict=True))
    return sequential.difference(users, strata.astype(float), candidate, scores.astype(float), **NET)


def plainly(rows: list[Row]) -> tuple[float, float]:
    """Estimate and variance with loops and dictionaries."""
    weight, gap, parts, padding = {}, {}, dict.fromkeys((user for user, *_ in rows), 0.0), 0.0
    for stratum in {row[1] for row in rows}:
        of = {arm: [row for row in rows if row[1] == stratum and row[2] is arm] for arm in (True, False)}
        means = {arm: sum(row[3] for row in of[arm]) / len(of[arm]) for arm in of}
        weight[stratum] = 1 / (1 / len(of[True]) + 1 / len(of[False]))
        gap[stratum] = means[True] - means[False]
    total = sum(weight.values())
    for user, stratum, candidate, score in rows:
        peers = [row[3] for row in rows if row[1] == stratum and row[2] is candidate]
        sign = 1 if candidate else -1
        parts[user] += sign * weight[stratum] / total * (score - sum(peers) / len(peers)) / len(peers)
    for stratum, of_stratum in weight.items():
        for arm in (True, False):
            size = sum(row[1] == stratum and row[2] is arm for row in rows)
            padding += (of_stratum / total / size) ** 2
    return sum(weight[k] * gap[k] for k in weight) / total, sum(part**2 for part in parts.values()) + padding


def some_rows(seed: int, people: int = 90) -> list[Row]:
    """Two steps; in the second one, some who were the stable policy's are the candidate's."""
    rng = np.random.default_rng(seed)
    place = rng.random(people)
    scores = rng.uniform(-1, 1, (people, 2)).round(2)
    return [
        (user, s, bool(place[user] < s), float(scores[user, k]))
        for k, s in enumerate((0.3, 0.5))
        for user in range(people)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_difference_computed_otherwise(seed: int) -> None:
    rows = some_rows(seed)
    estimate, variance = plainly(rows)
    found = difference(rows)
    assert found is not None
    assert found.estimate == pytest.approx(estimate)
    assert found.estimate - found.lower == pytest.approx(float(half_width(variance, NET["alpha"], NET["scale"])))


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_users_does_not_matter(random: object) -> None:
    rows = some_rows(4)
    renamed = {user: at for at, user in enumerate(random.sample(range(90), 90))}  # type: ignore[attr-defined]
    shuffled = [(renamed[user], *rest) for user, *rest in random.sample(rows, len(rows))]  # type: ignore[attr-defined]
    one, other = difference(rows), difference(shuffled)  # type: ignore[arg-type]
    assert one is not None
    assert other is not None
    assert (one.lower, one.estimate, one.upper, one.users) == pytest.approx(
        (other.lower, other.estimate, other.upper, other.users)
    )


def test_people_seen_in_two_steps_are_not_twice_as_many() -> None:
    rng = np.random.default_rng(5)
    scores, candidate = rng.uniform(-1, 1, 400), rng.random(400) < 0.5
    once = [(user, 0.3, bool(candidate[user]), float(scores[user])) for user in range(400)]
    twice = once + [(user, 0.5, arm, score) for user, _, arm, score in once]
    alone, both = difference(once), difference(twice)
    assert alone is not None
    assert both is not None
    assert both.estimate == pytest.approx(alone.estimate)
    assert both.upper - both.lower > 0.97 * (alone.upper - alone.lower)


def test_a_bad_step_is_not_held_against_the_arm_that_was_there_more() -> None:
    """Everybody votes down in the first step and up in the second; most meet the candidate in the second alone."""
    rows = [(user, 0.1, user < 30, -1.0) for user in range(300)]
    rows += [(user, 0.9, user < 270, 1.0) for user in range(300)]
    found = difference(rows)
    assert found is not None
    assert found.estimate == 0.0


def test_a_step_with_one_arm_alone_says_nothing() -> None:
    rows = some_rows(6)
    assert difference(rows + [(user, 1.0, True, -1.0) for user in range(90)]) == difference(rows)
    assert difference([row for row in rows if row[2]]) is None


SHARES = [0.01, 0.05, 0.25, 0.5, 0.9]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("test", [sequential.mismatch, sequential.excess])
def test_the_evidence_is_a_martingale_under_the_null(test: object, share: float) -> None:
    """Whatever was counted so far, the next user changes nothing on average: looking at any time is allowed."""
    assert callable(test)
    assert test(0, 0, share) == pytest.approx(0.0, abs=1e-12)
    for users in range(40):
        for candidate in range(users + 1):
            now = math.exp(test(candidate, users, share))
            after = share * math.exp(test(candidate + 1, users + 1, share))
            after += (1 - share) * math.exp(test(candidate, users + 1, share))
            assert after == pytest.approx(now, rel=1e-6)


@pytest.mark.parametrize(("candidate", "affected"), [(0, 7), (3, 3), (5, 9), (40, 60)])
@pytest.mark.parametrize("share", SHARES[1:4])
def test_the_excess_by_quadrature(candidate: int, affected: int, share: float) -> None:
    def ratio(of: float) -> float:
        return (of / share) ** candidate * ((1 - of) / (1 - share)) ** (affected - candidate) / (1 - share)

    expected = quad(ratio, share, 1, limit=500)[0]
    assert math.exp(sequential.excess(candidate, affected, share)) == pytest.approx(expected, rel=1e-6)


def test_only_more_than_the_share_is_an_excess_and_either_way_is_a_mismatch() -> None:
    for share in SHARES:
        assert sequential.excess(0, 100_000, share) < 0
        assert sequential.mismatch(0, 100_000, share) > 10
        assert sequential.excess(1000, 1000, share) > 10
        assert sequential.mismatch(round(10_000 * share), 10_000, share) < 0
    assert sequential.excess(3, 3, 0.05) > math.log(1 / 0.0075), "three errors, all in a small canary, are enough"


def test_a_look_at_every_vote_rarely_condemns_an_equal_candidate() -> None:
    for scenario in (Scenario("A/A"), Scenario("late", delay_turns=200.0), Scenario("heavy", heavy=0.2)):
        found = simulate(scenario, runs=200, people=400, turns=1500, seed=11)
        assert found["rolled_back"] <= 0.05 * 200, found


def test_ten_points_worse_is_found() -> None:
    found = simulate(Scenario("harm", harm=0.1), runs=100, people=1500, turns=5000, seed=12)
    assert found["rolled_back"] >= 80, found
    assert found["no_worse"] <= 5, found


@pytest.mark.parametrize(
    ("scenario", "by"),
    [
        (Scenario("slow", first_token=2.0), "first_token"),
        (Scenario("long", length=1.7), "length"),
        (Scenario("short", length=0.55), "length"),
    ],
)
def test_what_people_wait_for_or_get_more_of_is_found(scenario: Scenario, by: str) -> None:
    found = simulate(scenario, runs=50, people=1500, turns=4000, seed=14)
    assert found["by"][by] >= 45, found


def test_a_candidate_at_every_limit_is_let_be() -> None:
    limit = Scenario("limit", first_token=1.5, per_token=1.5, length=1.25, refusals=0.05)
    found = simulate(limit, runs=200, people=400, turns=1500, seed=15)
    assert found["rolled_back"] <= 0.05 * 200, found


def test_the_simulation_judges_as_the_decision_does() -> None:
    plan = RolloutSettings()
    scenario = Scenario("any", harm=0.05, first_token=4.0, per_token=1.6, length=0.3, refusals=0.1)
    rollouts = Rollouts(scenario, plan, runs=3, people=200, seed=13)
    for at in range(900):
        person, heavy = rollouts.turn()
        if at % 3 == 0:
            rollouts.choose(person, heavy)
        else:
            rollouts.reply(person)
            rollouts.vote(person, heavy)
    bounds = rollouts.bounds()
    manners = [scores.total / np.maximum(scores.count, 1.0) for scores in rollouts.manners.values()]
    for run in range(3):
        served = [
            Served(
                str(user),
                bool(rollouts.arm[run, user]),
                SHARE,
                int(count),
                up=max(0, int(net)),
                down=max(0, -int(net)),
                manner=Manner(int(count), *(float(manner[run, user]) for manner in manners)),
            )
            for user, (count, net) in enumerate(
                zip(rollouts.net_votes.count[run], rollouts.net_votes.total[run], strict=True)
            )
            if count
        ]
        compared = [
            Compared(str(user), int(won), int(count - won), 0)
            for user, (count, won) in enumerate(
                zip(rollouts.win_rate.count[run], rollouts.win_rate.total[run], strict=True)
            )
            if count
        ]
        decision = decide(Evidence("v1", "v0", SHARE, 1, 0.0, 0, served=served, compared=compared), plan)
        for measure in decision.measures:
            lower, upper = (bound[run] for bound in bounds[measure.name])
            assert (measure.lower, measure.upper) == pytest.approx((lower, upper), abs=1e-9)
        assert {each.name: each.raised for each in decision.guardrails} == {
            name: bool(raised[run]) for name, raised in rollouts.beyond().items()
        }
        assert any(each.raised for each in decision.guardrails), "else little is compared"
