"""The trainer's commands. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.safety_cli import train_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainer.config import TrainingConfig
    from trainer.safety import Labelled


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(trainer)
    app.command()(demo)
    from trainer.bench import app as bench
    from trainer.tiny.cli import app as tiny

    app.add_typer(tiny, name="tiny")
    app.add_typer(bench, name="bench")
    _group(app, "safety").command("train")(train_command(_harm_examples))


def _group(app: typer.Typer, name: str) -> typer.Typer:
    """The group of commands that another folder has begun."""
    for group in app.registered_groups:
        begun = group.typer_instance
        if begun is not None and name in (group.name, begun.info.name):
            return begun
    raise LookupError(f"no folder has begun a group of commands {name!r}")


def _harm_examples(seed: int, count: int) -> Iterator[Labelled]:
    from trainer.safety import Labelled
    from trainer.tiny.harm import make_examples

    held_out = min(2000, count // 4)
    for split, number in (("train", count), ("held_out", held_out)):
        for example in make_examples(seed, number, split):  # type: ignore[arg-type]
            yield Labelled(example.text, example.harmful, held_out=split == "held_out")


def train(
    config: Annotated[Path | None, typer.Option(help="A JSON file with settings; see docs/training.md.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run, from its last checkpoint.")] = None,
    *,
    abandon: Annotated[
        str | None, typer.Option(help="Train nothing: give this run up for good, so that no trainer resumes it.")
    ] = None,
    reward_model_only: Annotated[bool, typer.Option(help="Stop after the reward model and its held-out test.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides the config's seed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line on standard output.")] = False,
) -> None:
    """Train once: from the votes in the log to a candidate policy with its report."""
    from dataclasses import asdict

    from rich.console import Console

    from deploy.errors import DeployError
    from deploy.models import TINY, model_folder
    from feedback.errors import FeedbackError
    from feedback.settings import Settings
    from feedback.store import open_store
    from trainer.config import TrainingConfig
    from trainer.ended import clean_up_when_ended
    from trainer.errors import TrainerError
    from trainer.run import TrainingRunner
    from trainer.watch import give_up

    clean_up_when_ended()
    console = Console(stderr=True)
    settings = Settings()
    store = open_store(settings)
    try:
        if abandon is not None:
            give_up(store, abandon, "an operator gave it up")
            console.print(f"{abandon} is given up")
            return
        chosen = _config(settings.runs_folder, config, resume)
        if seed is not None:
            chosen = TrainingConfig.model_validate({**chosen.model_dump(), "seed": seed})
        folder = model_folder(os.environ.get("KUDOS_MODEL", TINY))
        runner = TrainingRunner(settings, store, chosen, folder, console)
        outcome = runner.run(resume, reward_model_only=reward_model_only)
    except (TrainerError, DeployError, FeedbackError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}")
        raise typer.Exit(1) from error
    finally:
        store.close()
    assessment = outcome.assessment
    console.print(
        f"reward model: {assessment.accuracy:.3f} [{assessment.lower:.3f}, {assessment.upper:.3f}] "
        f"on held-out {assessment.measured_on} ({assessment.pairs} pairs, {assessment.thumbs} thumbs)"
    )
    if outcome.version is not None:
        verdict = "[green]accepted[/green]" if outcome.accepted else "[red]refused[/red]"
        console.print(f"{outcome.version}: {verdict}; report: {outcome.report}")
        for refusal in outcome.refusals:
            console.print(f"  {refusal}")
        if outcome.accepted:
            console.print(f"let users meet it: kudos rollout start {outcome.version}")
    if as_json:
        typer.echo(json.dumps({**asdict(outcome), "report": str(outcome.report) if outcome.report else None}))


def trainer() -> None:
    """Wait for votes, and train whenever enough new ones have come in. `kudos up` runs this beside the server."""
    from feedback.settings import Settings
    from feedback.store import open_store
    from trainer.config import TrainerSettings
    from trainer.watch import Watcher

    settings = Settings()
    store = open_store(settings)
    Watcher(settings, TrainerSettings(), store, say=lambda text: print(f"kudos: {text}", flush=True)).run()


def demo(
    rounds: Annotated[int, typer.Option(min=1, max=10, help="Rounds of votes, training and rollout.")] = 2,
    taste: Annotated[str, typer.Option(help="What the simulated raters secretly like.")] = "warm",
    seed: Annotated[int, typer.Option(help="Of the raters and of training.")] = 0,
    home: Annotated[Path | None, typer.Option(help="An empty folder for the demo; unset: a new one.")] = None,
) -> None:
    """The whole loop before your eyes: simulated users chat, vote and choose; the server learns from them."""
    from trainer.tiny.demo import run_demo

    raise typer.Exit(run_demo(rounds=rounds, taste=taste, seed=seed, home=home))


def _config(runs_folder: Path, path: Path | None, resume: str | None) -> TrainingConfig:
    from pydantic import ValidationError

    from trainer.config import TrainingConfig

    if resume is not None:
        path = runs_folder / resume / "config.json"
    if path is None:
        return TrainingConfig()
    try:
        return TrainingConfig.model_validate_json(path.read_text())
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise typer.BadParameter(f"{path}: {where}: {first['msg']} (given: {first['input']!r})") from error
