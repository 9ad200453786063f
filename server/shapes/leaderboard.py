"""Who is preferred, as `GET /v1/leaderboard` says it."""

from __future__ import annotations

from typing import Literal

from deploy.leaderboard import By
from server.shapes import Shape, shown


def _place(strength: float, win_rate: float) -> dict[str, float]:
    return {
        "rank": 1,
        "strength": strength,
        "lower": strength - 0.19,
        "upper": strength + 0.19,
        "win_rate": win_rate,
        "win_rate_lower": win_rate - 0.04,
        "win_rate_upper": win_rate + 0.04,
    }


_LEFT = {"estimate": 0.06, "lower": -0.02, "upper": 0.14}


class Place(Shape):
    rank: int | None
    """1 and one more for each whose lower bound is above this one's upper bound; null where there are no bounds."""
    strength: float
    """Log-odds, in nats; 0 is the mean of all that are listed."""
    lower: float | None
    """95 % bounds with users as clusters; null where fewer than ten users chose."""
    upper: float | None
    win_rate: float
    """Against one of strength 0, ties as half."""
    win_rate_lower: float | None
    win_rate_upper: float | None


class Entry(Shape):
    name: str
    choices: int
    users: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    raw: Place
    controlled: Place
    """Were the two replies alike in length and form."""


class Pair(Shape):
    first: str
    second: str
    votes: int
    users: int
    first_wins: int
    second_wins: int
    ties: int
    both_bad: int
    first_win_rate: float


class Effect(Shape):
    estimate: float
    lower: float | None
    upper: float | None


class Draw(Shape):
    first: str
    second: str
    probability: float


class Draws(Shape):
    automatic: bool
    held: list[str]
    pairs: list[Draw]


class Leaderboard(Shape):
    model_config = shown(
        {
            "object": "leaderboard",
            "by": "policy",
            "choices": 812,
            "users": 95,
            "data": [
                {
                    "name": "v3-1f2e3d4c",
                    "choices": 640,
                    "users": 90,
                    "wins": 301,
                    "losses": 220,
                    "ties": 80,
                    "both_bad": 39,
                    "raw": _place(0.41, 0.58),
                    "controlled": _place(0.30, 0.56),
                }
            ],
            "pairs": [
                {
                    "first": "v0-4e5f6a7b",
                    "second": "v3-1f2e3d4c",
                    "votes": 400,
                    "users": 80,
                    "first_wins": 120,
                    "second_wins": 210,
                    "ties": 50,
                    "both_bad": 20,
                    "first_win_rate": 0.3875,
                }
            ],
            "effects": {
                "raw": {"left": _LEFT, "tie": 0.31},
                "controlled": {"left": _LEFT, "length": _LEFT, "tie": 0.31},
            },
            "draws": {
                "automatic": True,
                "held": ["v0-4e5f6a7b", "v3-1f2e3d4c"],
                "pairs": [{"first": "v0-4e5f6a7b", "second": "v3-1f2e3d4c", "probability": 1.0}],
            },
        }
    )
    object: Literal["leaderboard"]
    by: By
    choices: int
    users: int
    data: list[Entry]
    """Strongest first."""
    pairs: list[Pair]
    """Counts alone, most judged first."""
    effects: dict[Literal["raw", "controlled"], dict[str, Effect | float]] | None
    """What one standard deviation more of each look is worth, and the left side; and `tie`, the odds of one."""
    draws: Draws
    """How the next comparison is drawn."""
