"""`kudos safety check` and `cost`: what the filter would say of a text, and what it costs."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from server.safety.screen import Filter

app = typer.Typer(name="safety", no_args_is_help=True, help="The safety filter: try it, and train its classifier.")


@app.command()
def check(
    text: Annotated[str, typer.Argument(help="What a user says, or the model; - for standard input.")],
    stage: Annotated[str, typer.Option(help="input or output.")] = "output",
    file: Annotated[Path | None, typer.Option(help="The filter's file; unset: KUDOS_SAFETY_FILE.")] = None,
) -> None:
    """Say what the filter finds in a text, as one JSON line. Exits 1 where it would not let it through."""
    from server.errors import ApiError
    from server.safety.config import Action, Stage

    if stage not in list(Stage):
        _refuse(f"--stage {stage}: input or output")
    safety = _filter(file)
    try:
        said = sys.stdin.read() if text == "-" else text
        flags = asyncio.run(safety.flags_of(said, Stage(stage)))
    except ApiError as error:
        _refuse(str(error))
    blocked = any(flag.action is Action.BLOCK for flag in flags)
    print(json.dumps({"passes": not blocked, "flags": [flag.as_dict() for flag in flags]}, ensure_ascii=False))
    raise typer.Exit(1 if blocked else 0)


@app.command()
def cost(
    file: Annotated[Path | None, typer.Option(help="The filter's file; unset: KUDOS_SAFETY_FILE.")] = None,
    tokens: Annotated[int, typer.Option(min=100, help="Of the made-up reply that the rules read.")] = 20_000,
) -> None:
    """What the filter costs: processor time of the rules for a token, of a classifier for a reading. One JSON line."""
    from server.safety.rules import Watch

    safety = _filter(file)
    words = ("The", " quick", " fox", " says", ":", " order", " 4", "711", " is", " on", " its", " way", ".", "\n")
    reply = [words[at % len(words)] for at in range(tokens)]

    def seconds(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    watches = [Watch(rules, safety.max_held_chars) for _, rules in safety.rules]
    reading = seconds(lambda: [watch.read(piece) for piece in reply for watch in watches])
    text = "".join(reply[:64])
    classifiers = {}
    for each in safety.classifiers:
        each.scores([text] * 32)  # the first time loads kernels
        one, many = (seconds(partial(each.scores, [text] * n)) for n in (1, 32))
        classifiers[each.config.name] = {"one_ms": round(one * 1e3, 2), "of_32_ms": round(many / 32 * 1e3, 2)}
    print(json.dumps({"rules_us_per_token": round(reading / tokens * 1e6, 2), "classifiers": classifiers}))


def _filter(file: Path | None) -> Filter:
    from server.errors import BadConfiguration
    from server.safety.screen import Filter
    from server.settings import Settings

    settings = Settings()
    path = file or settings.safety_file
    if path is None:
        _refuse("no filter: set KUDOS_SAFETY_FILE, or give --file")
    try:
        return Filter(path, settings.home)
    except BadConfiguration as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    print(f"kudos: {message}", file=sys.stderr)
    raise SystemExit(2)
