"""`kudos leaderboard`: who is preferred, as two tables or as the JSON that the API gives."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from deploy.cli import opened


def leaderboard(
    prompts: Annotated[bool, typer.Option("--prompts", help="Rank system prompts, not policies.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Who is preferred, by all choices between two: strengths with bounds, raw and for replies that look alike."""
    from rich import box
    from rich.table import Table

    from deploy.leaderboard import By, board, choices_of

    by = By.PROMPT if prompts else By.POLICY
    with opened() as (store, _, console):
        with store.read() as session:
            choices = choices_of(session, by)
        found = board(choices)
        if as_json:
            typer.echo(json.dumps({"by": by, **found}))
            return
        if not found["data"]:
            console.print("Nobody has chosen between two of them yet: see `kudos policy matchup`.", soft_wrap=True)
            return
        table = Table(
            "", by.value, "win rate, raw", "looks alike", "choices", "users", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for row in found["data"]:
            rank = row["raw"]["rank"]
            table.add_row(
                "" if rank is None else str(rank),
                row["name"],
                _rate(row["raw"]),
                _rate(row["controlled"]),
                str(row["choices"]),
                str(row["users"]),
            )
        console.print(table)
        effects = {name: value for name, value in found["effects"]["controlled"].items() if name != "tie"}
        said = ", ".join(f"{name} {_effect(value)}" for name, value in effects.items())
        console.print(
            f"{found['choices']} choices of {found['users']} users. Win rates are against average strength, with ties "
            f"as half. What moves a choice besides, in nats: {said}.",
            soft_wrap=True,
        )


def _rate(place: dict[str, Any]) -> str:
    text = f"{place['win_rate']:.3f}"
    if place["lower"] is None:
        return f"{text}, too few users"
    return f"{text} [{place['win_rate_lower']:.3f}, {place['win_rate_upper']:.3f}]"


def _effect(value: dict[str, Any]) -> str:
    text = f"{value['estimate']:+.2f}"
    return text if value["lower"] is None else f"{text} [{value['lower']:+.2f}, {value['upper']:+.2f}]"
