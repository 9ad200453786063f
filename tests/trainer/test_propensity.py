"""Weights that undo who votes: on made-up people whose chance of voting is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from feedback.exposures import Exposure
from feedback.sample import PairSample, SampleSet, Side, ThumbSample
from feedback.schema import TargetKind, Thumb
from feedback.splits import Split, SplitReport
from trainer.propensity import Propensity, reweighted
from trainer.rankings import together

SHORT, LONG = "it is 5", "it is 5, and if you want to know more about it, then ask me again, I am glad to help"


def shown(chance: Callable[[str, str], float], count: int = 4000, users: int = 8) -> list[Exposure]:
    rng = random.Random(0)
    found = []
    for number in range(count):
        user, text = f"user{number % users}", rng.choice((SHORT, LONG))
        found.append(Exposure(TargetKind.REPLY, user, (text,), rng.random() < chance(user, text)))
    return found


def thumb(user: str, text: str, *, source: str = "chat", weight: float = 1.0, up: bool = True) -> ThumbSample:
    return ThumbSample(
        vote_id=0, user_id=user, prompt_digest="", split=Split.TRAIN, weight=weight, messages=[], prompt_token_ids=None,
        reasons=[], source=source, propensity=1.0, reply_id="", text=text, token_ids=None, policy_version="",
        arm="stable", thumb=Thumb.UP if up else Thumb.DOWN, rating=None, harmful=False,
    )  # fmt: skip


def samples(*thumbs: ThumbSample) -> SampleSet:
    report = SplitReport.__new__(SplitReport)
    return SampleSet(split=report, last_vote_id=0, thumbs=list(thumbs))


def test_it_finds_who_votes_and_on_what() -> None:
    chances = {"user0": 0.05, "user1": 0.6}
    model = Propensity(shown(lambda user, text: chances.get(user, 0.3) * (1.5 if text == LONG else 0.5)))
    for user in ("user0", "user1", "user2"):
        short, long = model.probability(user, [SHORT]), model.probability(user, [LONG])
        assert (short + long) / 2 == pytest.approx(chances.get(user, 0.3), abs=0.06)
        assert long > 1.8 * short
    stranger = model.probability("nobody", [SHORT]) + model.probability("nobody", [LONG])
    assert stranger / 2 == pytest.approx(np.mean([chances.get(f"user{n}", 0.3) for n in range(8)]), abs=0.05)


def test_where_all_vote_on_all_every_vote_weighs_the_same() -> None:
    found = reweighted(
        samples(thumb("user0", SHORT), thumb("user1", LONG)), shown(lambda *_: 1.0), floor=0.2, most_per_user=1e9
    )
    assert [sample.weight for sample in found.thumbs] == pytest.approx([1.0, 1.0], abs=0.01)


def test_a_biased_log_gives_an_unbiased_mean() -> None:
    """Half of all replies are short and liked, half long and not; people vote five times as often on the long ones."""
    log = shown(lambda _, text: 0.5 if text == LONG else 0.1)
    votes = [thumb(each.user_id, each.texts[0], up=each.texts[0] == SHORT) for each in log if each.voted]
    plain = np.mean([sample.label for sample in votes])
    found = reweighted(samples(*votes), log, floor=0.01, most_per_user=1e9).thumbs
    weighted = np.average([sample.label for sample in found], weights=[sample.weight for sample in found])
    assert plain < 0.2
    assert weighted == pytest.approx(0.5, abs=0.05)
    assert np.mean([sample.weight for sample in found]) == pytest.approx(1.0)


def test_a_floor_bounds_what_one_vote_stands_for() -> None:
    log = shown(lambda user, _: 0.01 if user == "user0" else 0.8)
    rare, usual = thumb("user0", SHORT), thumb("user1", SHORT)
    for floor, ratio in ((1.0, 1.0), (0.4, 2.0)):
        found = reweighted(samples(rare, usual), log, floor=floor, most_per_user=1e9).thumbs
        assert found[0].weight / found[1].weight == pytest.approx(ratio, rel=0.1)


def test_what_was_imported_keeps_its_weight_and_a_lighter_vote_stays_lighter() -> None:
    log = shown(lambda user, _: 0.2 if user == "user0" else 0.8)
    imported, capped, usual = (
        thumb("x", LONG, source="hh", weight=0.7),
        thumb("user0", LONG, weight=0.5),
        thumb("user1", LONG),
    )
    found = reweighted(samples(imported, capped, usual), log, floor=0.05, most_per_user=1e9).thumbs
    assert found[0].weight == 0.7
    assert found[1].weight / found[2].weight == pytest.approx(0.5 * 4, rel=0.15)


def test_one_users_votes_weigh_no_more_than_the_cap_however_rarely_they_vote() -> None:
    log = shown(lambda user, _: 0.1 if user == "user0" else 0.8)
    votes = [replace(thumb(f"user{n % 2}", SHORT), vote_id=n) for n in range(40)]
    found = reweighted(samples(*votes), log, floor=0.05, most_per_user=20.0).thumbs
    assert sum(each.weight for each in found if each.user_id == "user0") == pytest.approx(20.0)
    assert 0 < sum(each.weight for each in found if each.user_id == "user1") < 20.0


def test_somebody_whose_only_vote_was_between_twice_the_same_reply_weighs_nothing() -> None:
    side = Side(reply_id="", text=SHORT, token_ids=None, policy_version="")
    pair = PairSample(
        vote_id=1, user_id="user1", prompt_digest="", split=Split.TRAIN, weight=1.0, messages=[], prompt_token_ids=None,
        reasons=[], source="chat", propensity=1.0, left=side, right=side, choice="tie",
    )  # fmt: skip
    both = samples(thumb("user0", SHORT))
    both.pairs.append(pair)
    found = reweighted(together(both), [], floor=0.2, most_per_user=20.0)
    assert [sample.weight for sample in found] == pytest.approx([1.0, 0.0])


def test_an_empty_log_changes_nothing() -> None:
    one = thumb("user0", SHORT)
    side = Side(reply_id="", text=SHORT, token_ids=None, policy_version="")
    pair = PairSample(
        vote_id=1, user_id="user0", prompt_digest="", split=Split.TRAIN, weight=0.5, messages=[], prompt_token_ids=None,
        reasons=[], source="chat", propensity=1.0, left=side, right=side, choice="left",
    )  # fmt: skip
    both = samples(one)
    both.pairs.append(pair)
    found = reweighted(both, [], floor=0.2, most_per_user=1e9)
    assert [sample.weight for sample in found] == pytest.approx([1.0, 0.5])
