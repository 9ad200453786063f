"""The trainer that runs beside the server: it wakes when enough new votes have come in, and trains once.

It holds no model itself. Each run is a process of its own at a lower priority, so that its memory goes back and chat
comes first. A run that was killed is resumed before a new one starts.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func
from sqlmodel import Session, col, select

from feedback.schema import Lease, RunState, TrainingRun, User, now
from feedback.settings import Settings
from feedback.store import Store
from feedback.verdicts import effective_vote
from trainer.config import TrainerSettings
from trainer.held_lease import LEASE

REQUEST_FILE = "train.request"  # an operator asks for a run now by creating this file in the home folder


class Watcher:
    def __init__(
        self, settings: Settings, trainer: TrainerSettings, store: Store, say: Callable[[str], None] = print
    ) -> None:
        self.settings, self.trainer, self.store, self.say = settings, trainer, store, say
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT; a run in progress is then told to stop and left resumable."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        self.say(f"the trainer waits for {self.trainer.after_votes} new votes")
        while not self._stopping:
            due = self.due()
            if due is not None:
                self._train(due)
            else:
                time.sleep(self.trainer.poll_seconds)

    def due(self) -> list[str] | None:
        """The arguments of the run that should start now, or None."""
        with self.store.read() as session:
            if somebody_trains(session):
                return None
            interrupted = abandoned_run(session)
            if interrupted is not None:
                return ["--resume", interrupted]
            if (self.settings.home / REQUEST_FILE).exists():
                return []
            return (
                []
                if new_votes(session, consent_default=self.settings.consent_default) >= self.trainer.after_votes
                else None
            )

    def _train(self, arguments: list[str]) -> None:
        (self.settings.home / REQUEST_FILE).unlink(missing_ok=True)
        command = [sys.executable, "-m", "kudos", "train", *arguments]
        if self.trainer.config is not None and not arguments:
            command += ["--config", self.trainer.config]
        resumed = arguments[-1] if arguments else None
        self.say(f"training goes on with {resumed}" if resumed else "a training run begins")
        started = time.monotonic()
        self._child = subprocess.Popen(["nice", "-n", str(self.trainer.niceness), *command])  # noqa: S603, S607
        status = self._child.wait()
        self._child = None
        self.say(f"{self._outcome(status, resumed)}, after {(time.monotonic() - started) / 60:.1f} min")
        if status != 0 and not self._stopping:
            if resumed:
                self._give_up(resumed)
            time.sleep(self.trainer.poll_seconds)

    def _outcome(self, status: int, resumed: str | None) -> str:
        with self.store.read() as session:
            run = session.get(TrainingRun, resumed) if resumed else newest_run(session)
        if run is None or status != 0:
            return f"the run ended with status {status}"
        return f"{run.message} (report: {self.settings.home / (run.report_path or '')})"

    def _give_up(self, resumed: str) -> None:
        """A run that fails when resumed would fail for ever: mark it, so that new votes can start another."""
        with self.store.write() as session:
            run = session.get(TrainingRun, resumed)
            if run is not None and run.state in (RunState.RUNNING, RunState.INTERRUPTED):
                run.state, run.error = RunState.FAILED, run.error or "the process died"
                session.add(run)

    def _stop(self, signum: int, frame: object) -> None:
        self._stopping = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


def newest_run(session: Session) -> TrainingRun | None:
    return session.exec(select(TrainingRun).order_by(col(TrainingRun.started_at).desc())).first()


def new_votes(session: Session, *, consent_default: bool) -> int:
    """Effective votes of people who agreed to training, since the newest run that looked at them."""
    newest = session.exec(select(func.max(TrainingRun.last_vote_id))).one() or 0
    users = User.__table__  # type: ignore[attr-defined]
    query = (
        select(func.count())
        .select_from(effective_vote.outerjoin(users, users.c.id == effective_vote.c.user_id))
        .where(effective_vote.c.id > newest, func.coalesce(users.c.consent, consent_default))
    )
    return int(session.execute(query).scalar_one())


def somebody_trains(session: Session) -> bool:
    lease = session.get(Lease, LEASE)
    return lease is not None and lease.expires_at > now()


def abandoned_run(session: Session) -> str | None:
    """A run whose process died: it says that it runs, or was interrupted, and nobody holds the lease."""
    if somebody_trains(session):
        return None
    return session.exec(
        select(TrainingRun.id)
        .where(col(TrainingRun.state).in_([RunState.RUNNING, RunState.INTERRUPTED]))
        .order_by(col(TrainingRun.started_at).desc())
    ).first()


def model_folder(name: str) -> Path:
    """The folder of the model that the deployment starts from."""
    return Path(__file__).parent / "tiny" / "model" if name == "kudos-tiny" else Path(name)
