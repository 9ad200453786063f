"""`kudos safety train`: the safety filter's classifier. Assembled in `trainer.cli`, which alone knows the world."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trainer.safety import Labelled

Texts = Callable[[int, int], "Iterable[Labelled]"]
"""From a seed and a number, that many texts of the built-in world, some of them held out."""


def train_command(world: Texts) -> Callable[..., None]:
    def safety_train(
        examples: Annotated[int, typer.Option(min=0, help="Of the built-in world; 0: people's votes alone.")] = 8000,
        votes: Annotated[bool, typer.Option(help="Learn from replies that people flagged as harmful, too.")] = True,
        epochs: Annotated[int, typer.Option(min=1, max=100, help="Times that it sees each text.")] = 3,
        seed: Annotated[int, typer.Option(min=0, help="Of the examples and of training.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line on standard output.")] = False,
    ) -> None:
        """Train a classifier of harmful replies, and publish it below KUDOS_HOME/safety."""
        from deploy.errors import NoSuchModel
        from deploy.models import TINY, model_folder
        from feedback.settings import Settings
        from feedback.store import open_store
        from trainer.safety import SafetyConfig, train, voted

        settings = Settings()
        try:
            folder = model_folder(os.environ.get("KUDOS_MODEL", TINY))
        except NoSuchModel as error:
            print(f"kudos: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        texts = list(world(seed, examples))
        if votes:
            store = open_store(settings)
            try:
                with store.read() as session:
                    texts += voted(
                        session,
                        consent_default=settings.consent_default,
                        burst_votes_per_minute=settings.burst_votes_per_minute,
                    )
            finally:
                store.close()

        def say(step: int, steps: int, loss: float) -> None:
            if step % max(1, steps // 10) == 0:
                print(f"{step}/{steps}  loss {loss:.3f}", file=sys.stderr, flush=True)

        try:
            trained = train(
                folder,
                texts,
                settings.home / "safety",
                SafetyConfig(epochs=epochs, seed=seed),
                say,
            )
        except ValueError as error:
            print(f"kudos: {error}: give --examples, or wait for people's flags", file=sys.stderr)
            raise typer.Exit(1) from error
        held = trained.held_out
        print(
            f"{trained.folder.name}: accuracy {held.accuracy:.3f} [{held.lower:.3f}, {held.upper:.3f}] on {held.texts} "
            f"held-out texts; {held.caught:.1%} of the harmful ones caught, {held.false_alarms:.1%} of the others "
            f"taken for harmful; {trained.flagged} flagged by people; {trained.seconds:.0f} s\n"
            f'use it: [[classifiers]] name = "harm", model = "{trained.folder.name}", label = "harmful" in '
            "KUDOS_SAFETY_FILE",
            file=sys.stderr,
        )
        if as_json:
            typer.echo(json.dumps({**asdict(trained), "folder": trained.folder.name}))

    return safety_train
