"""What must not get much worse: limits either way, users as clusters, and sentences that say which."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deploy.decision import ALPHA_PARTS, Verdict, decide
from deploy.guardrails import Guardrail, guardrails
from deploy.observed import Evidence, Manner, Served
from deploy.sequential import MIN_USERS
from deploy.settings import RolloutSettings

PLAN = RolloutSettings()


def people(users: int = 200, seed: int = 0, **times: float) -> list[Served]:
    """Half are the candidate's; `times`: how many times as much of each they get, of refusals how much more."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        candidate = user % 2 == 1
        noise = rng.normal(0, 0.3, 3)

        def log(name: str, usual: float, at: int, candidate: bool = candidate, noise: np.ndarray = noise) -> float:
            return math.log(usual * (times.get(name, 1.0) if candidate else 1.0)) + float(noise[at])

        refused = 0.02 + (times.get("refused", 0.0) if candidate else 0.0)
        manner = Manner(
            5,
            log("first_token", 0.2, 0),
            log("per_token", 0.03, 1),
            log("length", 60.0, 2),
            float(rng.random() < refused),
        )
        rows.append(Served(f"u{user}", candidate, 0.5, 5, manner=manner))
    return rows


def found(rows: list[Served]) -> dict[str, Guardrail]:
    return {each.name: each for each in guardrails(rows, PLAN, ALPHA_PARTS)}


def test_alike_raises_nothing_and_says_how_alike() -> None:
    limits = found(people())
    assert [name for name, each in limits.items() if each.raised] == []
    for each in limits.values():
        assert each.users == 100
        assert each.lower is not None
        assert each.upper is not None
        assert each.estimate is not None
        assert each.lower < (1.0 if each.ratio else 0.0) < each.upper
        assert each.lower < each.estimate < each.upper


@pytest.mark.parametrize(
    ("times", "raised"),
    [
        ({"first_token": 2.0}, "first_token"),
        ({"per_token": 2.0}, "per_token"),
        ({"length": 1.7}, "length"),
        ({"length": 1 / 1.7}, "length"),
        ({"length": 0.0001}, "length"),
        ({"refused": 0.4}, "refusals"),
    ],
)
def test_each_finds_its_own_harm(times: dict[str, float], raised: str) -> None:
    limits = found(people(800, **times))
    assert [name for name, each in limits.items() if each.raised] == [raised]


def test_better_is_never_too_good_except_in_length() -> None:
    limits = found(people(800, first_token=0.1, per_token=0.1))
    assert not any(each.raised for each in limits.values())


def test_within_the_limit_is_let_be_however_certain() -> None:
    limits = found(people(20_000, first_token=1.4, per_token=1.4, length=1.2, refused=0.03))
    assert not any(each.raised for each in limits.values())
    assert limits["first_token"].lower > 1.3  # type: ignore[operator]


def test_few_users_and_no_times_say_nothing() -> None:
    limits = found(people(2 * MIN_USERS - 2))
    assert {each.estimate for each in limits.values()} == {None}
    assert found([replace(row, manner=Manner()) for row in people()])["first_token"].users == 0


def test_one_user_with_all_the_replies_is_one_user() -> None:
    rows = [replace(row, manner=replace(row.manner, replies=10_000)) if row.user == "u1" else row for row in people()]
    assert found(rows) == found(people())


def test_harm_goes_back_and_the_reason_says_what_is_allowed() -> None:
    evidence = Evidence("v1", "v0", 0.5, 1, 0.0, 0, served=people(800, first_token=3.0, length=0.3, refused=0.5))
    decision = decide(evidence, PLAN)
    assert decision.verdict is Verdict.ROLL_BACK
    for words in (
        "time to first token is 2.9", "at least, where 1.50 is allowed",
        "length of replies is 0.3", "at most, where 0.80 is allowed",
        "share of refusals is +4", "5.0% is allowed",
    ):  # fmt: skip
        assert words in decision.reason, decision.reason
    assert {each["name"] for each in decision.as_dict()["guardrails"]} == {
        "first_token", "per_token", "length", "refusals",
    }  # fmt: skip


def test_limits_are_the_plans() -> None:
    rows = people(800, first_token=2.0, length=1.7, refused=0.4)
    loose = RolloutSettings(first_token_ratio=3.0, length_ratio=3.0, refusals_margin=0.9)
    assert not any(each.raised for each in guardrails(rows, loose, ALPHA_PARTS))
