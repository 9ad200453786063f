"""What is held out is new to the model, the same every time, and never nothing without saying so."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.splits import Key, Plan, Split, SplitMode, VoteKeys, plan_split


def plan(keys: list[Key], fraction: float = 0.2, min_held_out: int = 20) -> Plan:
    held = VoteKeys()
    for key in keys:
        held.add(*key)
    return plan_split(held, fraction=fraction, min_held_out=min_held_out)


def own_prompts(users: int, votes_each: int) -> list[Key]:
    votes = [(user, turn) for user in range(users) for turn in range(votes_each)]
    return [Key(number, f"u{user}", f"p{user}-{turn}") for number, (user, turn) in enumerate(votes)]


KEYS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=200).map(
    lambda pairs: [Key(number, f"u{user}", f"p{prompt}") for number, (user, prompt) in enumerate(pairs)]
)


@given(keys=KEYS, fraction=st.floats(0.05, 0.5))
def test_what_always_holds(keys: list[Key], fraction: float) -> None:
    made = plan(keys, fraction)
    sides = {key: made.assign(key) for key in keys}
    assert sides == {key: plan(list(reversed(keys)), fraction).assign(key) for key in keys}  # order does not matter
    report = made.report
    found = list(sides.values())
    assert (report.train, report.held_out, report.dropped) == tuple(
        found.count(side) for side in (Split.TRAIN, Split.HELD_OUT, None)
    )
    assert report.votes == len(keys) == report.train + report.held_out + report.dropped
    if len(keys) >= 2:
        assert report.held_out >= 1
        assert report.train >= 1
        assert report.mode is not SplitMode.NONE
    else:
        assert report.mode is SplitMode.NONE
    train = [key for key, side in sides.items() if side is Split.TRAIN]
    held_out = [key for key, side in sides.items() if side is Split.HELD_OUT]
    if report.mode in (SplitMode.USER_AND_PROMPT, SplitMode.PROMPT):
        assert not {key.prompt_digest for key in train} & {key.prompt_digest for key in held_out}
    if report.mode is SplitMode.USER_AND_PROMPT:
        assert not {key.user_id for key in train} & {key.user_id for key in held_out}


def test_prompts_of_ones_own_cost_no_votes() -> None:
    report = plan(own_prompts(200, 5)).report
    assert (report.mode, report.dropped, report.shared_prompts) == (SplitMode.USER_AND_PROMPT, 0, 0)
    assert 0.1 < report.held_out / report.votes < 0.3
    assert 20 <= report.held_out_users <= 60


def test_prompts_that_everybody_shares_are_split_too() -> None:
    keys = [Key(user * 40 + prompt, f"u{user}", f"p{prompt}") for user in range(60) for prompt in range(40)]
    made = plan(keys)
    assert made.report.mode is SplitMode.USER_AND_PROMPT
    assert made.report.dropped > 0
    for key in keys:
        same_user = {made.assign(other) for other in keys if other.user_id == key.user_id} - {None}
        assert len(same_user) == 1


def test_few_users_fall_back_and_say_so() -> None:
    one_user = plan([Key(number, "ada", f"p{number}") for number in range(100)]).report
    assert one_user.mode is SplitMode.PROMPT
    assert "user and prompt" in one_user.reason
    one_of_each = plan([Key(number, "ada", "p") for number in range(100)]).report
    assert (one_of_each.mode, one_of_each.held_out, one_of_each.train) == (SplitMode.VOTE, 20, 80)
    two = plan([Key(1, "ada", "p"), Key(2, "ada", "p")]).report
    assert (two.mode, two.held_out, two.train) == (SplitMode.VOTE, 1, 1)
    assert plan([Key(1, "ada", "p")]).report.as_dict()["reason"] == "there are fewer than two votes"


def test_no_user_changes_sides_as_the_log_grows() -> None:
    keys = [Key(number, f"u{number % 97}", f"p{number * 7 % 301}") for number in range(4_000)]
    sides: dict[str, set[Split]] = defaultdict(set)
    for size in (1_000, 2_000, 4_000):
        made = plan(keys[:size])
        assert made.report.mode is SplitMode.USER_AND_PROMPT
        for key in keys[:size]:
            if (side := made.assign(key)) is not None:
                sides[key.user_id].add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {Split.TRAIN, Split.HELD_OUT}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        plan([], fraction)
