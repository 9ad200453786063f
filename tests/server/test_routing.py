"""Routing is pure: users stay put, shares hold, and a candidate that is not held meets nobody."""

import random

from hypothesis import given
from hypothesis import strategies as st

from deploy.rollout import Wanted
from server.routing import assign, pair, position

STABLE, CANDIDATE, OLD = "v1-stable", "v2-candidate", "v0-old"
shares = st.floats(min_value=0.001, max_value=1.0)
users = st.text(min_size=1, max_size=40)


def wanted(share: float = 0.0, *, matchup: tuple[str, str] | None = None, candidate: str | None = CANDIDATE) -> Wanted:
    return Wanted(STABLE, candidate if share else None, share, "salt", matchup, "v0-base")


@given(user=users, share=shares)
def test_an_assignment_repeats_and_says_its_probability(user: str, share: float) -> None:
    first = assign(user, wanted(share), {STABLE, CANDIDATE}, OLD)
    assert first == assign(user, wanted(share), {STABLE, CANDIDATE}, OLD)
    assert first.propensity == (share if first.arm == "canary" else 1 - share)
    assert (first.version == CANDIDATE) == (first.arm == "canary")


@given(user=users, share=shares, more=shares)
def test_a_larger_share_keeps_those_who_were_in(user: str, share: float, more: float) -> None:
    low, high = sorted((share, more))
    if assign(user, wanted(low), {STABLE, CANDIDATE}, OLD).arm == "canary":
        assert assign(user, wanted(high), {STABLE, CANDIDATE}, OLD).arm == "canary"


@given(user=users, share=shares)
def test_a_candidate_that_is_not_held_meets_nobody(user: str, share: float) -> None:
    assert assign(user, wanted(share), {STABLE}, OLD).version == STABLE
    assert assign(user, wanted(share), set(), OLD).version == OLD
    assert assign(user, wanted(share), {STABLE}, OLD).propensity == 1.0


def test_positions_are_uniform_and_differ_by_salt() -> None:
    places = sorted(position(f"user{at}", "salt") for at in range(4000))
    worst = max(abs(place - at / len(places)) for at, place in enumerate(places))
    assert worst < 1.63 / len(places) ** 0.5, "Kolmogorov-Smirnov at 1 %"
    assert position("user1", "salt") != position("user1", "pepper")


def test_a_pair_is_the_matchup_then_the_arms_then_one_policy_twice() -> None:
    draw = random.Random(0)
    held = {STABLE, CANDIDATE, OLD}
    drawn = [pair("u", wanted(0.5, matchup=(OLD, STABLE)), held, OLD, draw) for _ in range(200)]
    assert {(each.left, each.right) for each in drawn} == {(OLD, STABLE), (STABLE, OLD)}
    assert 60 < sum(each.left == OLD for each in drawn) < 140
    assert {each.propensity for each in drawn} == {0.5}
    arms = [pair("u", wanted(0.5), held, OLD, draw) for _ in range(20)]
    assert {each.left for each in arms} == {STABLE, CANDIDATE}
    one = pair("u", wanted(), held, OLD, draw)
    assert (one.left, one.right, one.propensity) == (STABLE, STABLE, 1.0)
    odds = {(OLD, STABLE): 0.1, (CANDIDATE, STABLE): 0.9}
    known = [pair("u", wanted(0.5, matchup=(OLD, STABLE)), held, OLD, draw, odds=odds) for _ in range(400)]
    assert 0.04 < sum(OLD in (each.left, each.right) for each in known) / 400 < 0.18, "odds come before a matchup"
    assert {each.propensity for each in known if CANDIDATE in (each.left, each.right)} == {0.45}
    assert 140 < sum(each.right == STABLE for each in known) < 260, "sides are drawn"
    not_held = pair("u", wanted(0.5, matchup=(OLD, "v9-absent")), {STABLE}, OLD, draw)
    assert (not_held.left, not_held.right) == (STABLE, STABLE)
