"""Which pair comes next: probabilities that add up, a floor for every pair, and the widest interval first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.draws import most_telling, odds
from deploy.leaderboard import LOOKS, Choice, ranked

names = st.lists(st.sampled_from("abcdefg"), min_size=0, max_size=7)


def choices(first: str, second: str, users: int, *, start: int = 0) -> list[Choice]:
    said = ("left", "right", "tie")
    return [
        Choice(f"u{start + n}", *((first, second) if n % 2 else (second, first)), said[n % 3], (0.0,) * len(LOOKS))
        for n in range(users)
    ]


@given(
    pool=names, favourite=st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")), uniform=st.floats(0.01, 1)
)
def test_every_pair_has_its_floor_and_all_add_up(pool: list[str], favourite: tuple[str, str], uniform: float) -> None:
    found = odds(pool, favourite, uniform)
    count = len(set(pool)) * (len(set(pool)) - 1) // 2
    assert len(found) == count
    if count:
        assert sum(found.values()) == pytest.approx(1.0)
        assert min(found.values()) >= uniform / count - 1e-12
        assert all(first < second for first, second in found)


def test_the_favourite_has_the_rest_on_whichever_side_it_is_named() -> None:
    for favourite in (("b", "a"), ("a", "b")):
        assert odds(["a", "b", "c"], favourite, 0.3) == pytest.approx(
            {("a", "b"): 0.8, ("a", "c"): 0.1, ("b", "c"): 0.1}
        )
    assert odds(["a", "b", "c"], ("a", "x"), 0.3) == pytest.approx(
        dict.fromkeys(odds(["a", "b", "c"], None, 0.3), 1 / 3)
    )


def telling(rows: list[Choice], pool: list[str]) -> tuple[str, str] | None:
    found = ranked(rows, also=pool)
    return most_telling(found.fit, found.names, pool)


def test_what_is_known_least_is_shown_next() -> None:
    rows = choices("a", "b", 300) + choices("a", "c", 300, start=300) + choices("b", "d", 40, start=600)
    drawn = telling(rows, ["a", "b", "c", "d"])
    assert drawn is not None
    assert "d" in drawn
    unseen = telling(rows, ["a", "b", "c", "d", "e"])
    assert unseen is not None
    assert "e" in unseen, "what nobody has judged comes before what few have"
    only = telling(rows, ["a", "c"])
    assert only == ("a", "c")
    assert telling(rows, ["a"]) is None


def test_an_opponent_of_equal_strength_tells_more() -> None:
    """d is like a, and far from b, which everybody prefers."""
    rows = [Choice(f"x{n}", "b", "a", "right" if n % 20 == 0 else "left", (0.0,) * len(LOOKS)) for n in range(400)] + [
        Choice(f"y{n}", "a", "b", "left" if n % 20 == 0 else "right", (0.0,) * len(LOOKS)) for n in range(400)
    ]
    rows += choices("a", "d", 30, start=1000)
    assert telling(rows, ["a", "b", "d"]) == ("a", "d")


def test_drawing_so_narrows_the_widest_interval_sooner_than_drawing_evenly() -> None:
    true = {"a": 0.5, "b": 0.0, "c": -0.5, "d": 0.0}
    widest = {}
    for uniform in (1.0, 0.2):
        rng = np.random.default_rng(7)
        rows = choices("a", "b", 200) + choices("b", "c", 200, start=200) + choices("a", "d", 20, start=400)
        for turn in range(6):
            drawn = odds(list(true), telling(rows, list(true)), uniform)
            for n in range(50):
                first, second = list(drawn)[rng.choice(len(drawn), p=list(drawn.values()))]
                won = rng.random() < 1 / (1 + np.exp(true[second] - true[first]))
                rows.append(Choice(f"t{turn}-{n}", first, second, "left" if won else "right", (0.0,) * len(LOOKS)))
        found = ranked(rows)
        widest[uniform] = float(np.sqrt(np.diag(found.fit.covariance)[:4]).max())
    assert widest[0.2] < widest[1.0]
