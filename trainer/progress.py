"""Where a run is, told three ways: a live line on the terminal, the run's row in the database, and a plain log.

The row is written at most once a second, as it shares the database with the votes that are coming in.
"""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from feedback.errors import StorageError
from feedback.schema import TrainingRun, now
from feedback.store import Store
from trainer.records import refuse_erased

# Rough shares of a run's time, so that one bar can speak for all of it.
STAGES = {
    "starting": 0.05,
    "samples": 0.05,
    "reward model": 0.25,
    "supervised": 0.05,
    "ppo": 0.5,
    "evaluation": 0.07,
    "publishing": 0.03,
}


class RunProgress:
    def __init__(self, store: Store, run_id: str, console: Console) -> None:
        self._store, self._run_id, self._console = store, run_id, console
        self._stage = "starting"
        self._written = 0.0
        self._bar = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=1.0, message="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, stage: str, message: str = "") -> None:
        self._stage = stage
        self._tell(0.0, message, force=True)
        if not self._console.is_terminal:
            self._console.print(f"{stage}: {message}" if message else stage, highlight=False)

    def step(self, share: float, message: str, *, log: bool = False, **fields: Any) -> None:
        """`share` of the present stage is done. `fields` go into the run's row."""
        self._tell(share, message, force=False, **fields)
        if log and not self._console.is_terminal:
            self._console.print(f"{self._stage}: {message}", highlight=False)
        elif log:
            self._bar.console.print(message, highlight=False)

    def _tell(self, share: float, message: str, *, force: bool, **fields: Any) -> None:
        before = 0.0
        for name, weight in STAGES.items():
            if name == self._stage:
                break
            before += weight
        progress = min(1.0, before + share * STAGES.get(self._stage, 0.0))
        self._bar.update(self._task, completed=progress, description=self._stage, message=message)
        if force or time.monotonic() - self._written >= 1.0:
            with suppress(StorageError):  # busy, or away for a moment: the next step says it again
                self.write(stage=self._stage, progress=progress, message=message, **fields)

    def write(self, **fields: Any) -> None:
        """Raises RunErased where votes that the run learned from were erased meanwhile."""
        self._written = time.monotonic()
        with self._store.write() as session:
            run = session.get(TrainingRun, self._run_id)
            assert run is not None
            refuse_erased(run)
            for name, value in fields.items():
                # Each stage adds its measures to those of the stages before it.
                setattr(run, name, {**run.metrics, **value} if name == "metrics" else value)
            run.updated_at = now()
            session.add(run)
