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
from contextlib import suppress

from sqlalchemy import func
from sqlmodel import Session, col, select

from feedback.schema import Lease, RunState, TrainingRun, User, now
from feedback.settings import Settings
from feedback.store import Store
from feedback.verdicts import effective_vote
from trainer.config import TrainerSettings
from trainer.errors import TrainerError
from trainer.held_lease import LEASE

_RESUMED = (RunState.RUNNING, RunState.INTERRUPTED)  # where nobody holds the lease
_LONGEST_PAUSE_SECONDS = 600.0  # between runs that fail one after another
REQUEST_FILE = "train.request"  # an operator asks for a run now by creating this file in the home folder


class Watcher:
    def __init__(
        self, settings: Settings, trainer: TrainerSettings, store: Store, say: Callable[[str], None] = print
    ) -> None:
        self.settings, self.trainer, self.store, self.say = settings, trainer, store, say
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._pause_seconds = trainer.poll_seconds  # after the next failure; longer for each one in a row
        self._not_before = 0.0  # monotonic; after a failure it waits, unless an operator asks

    def run(self) -> None:
        """Until SIGTERM or SIGINT; a run in progress is then told to stop and left resumable."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        self.say(f"the trainer waits for {self.trainer.after_votes} new votes")
        while not self._stopping:
            due = self.due() if self._may_try() else None
            if due is not None:
                self._train(due)
            else:
                time.sleep(self.trainer.poll_seconds)

    def _may_try(self) -> bool:
        return time.monotonic() >= self._not_before or (self.settings.home / REQUEST_FILE).exists()

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
        if status == 0:
            self._pause_seconds = self.trainer.poll_seconds
        elif not self._stopping:
            if resumed:
                with suppress(TrainerError):
                    give_up(self.store, resumed, "the process died")
            self._not_before = time.monotonic() + self._pause_seconds
            self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, 4 * self._pause_seconds)

    def _outcome(self, status: int, resumed: str | None) -> str:
        with self.store.read() as session:
            run = session.get(TrainingRun, resumed) if resumed else newest_run(session)
        if run is None or status != 0:
            return f"the run ended with status {status}"
        return f"{run.message} (report: {self.settings.home / (run.report_path or '')})"

    def _stop(self, signum: int, frame: object) -> None:
        self._stopping = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


def give_up(store: Store, run_id: str, reason: str) -> None:
    """No trainer resumes the run after that. One that dies when resumed would do so for ever.

    Raises TrainerError where there is nothing to give up, or a trainer may be at work on it: one that was refused the
    lease says nothing of the run.
    """
    with store.write() as session:
        if somebody_trains(session):
            raise TrainerError(
                "a trainer is at work: end it first, and wait until its lease has run out (90 s at most)"
            )
        run = session.get(TrainingRun, run_id)
        if run is None:
            raise TrainerError(f"there is no run {run_id}: the folders in runs/ are named by them")
        if run.state not in _RESUMED:
            raise TrainerError(f"{run_id} has ended ({run.state}), and no trainer resumes it")
        run.state, run.error = RunState.FAILED, run.error or reason
        session.add(run)


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
        select(TrainingRun.id).where(col(TrainingRun.state).in_(_RESUMED)).order_by(col(TrainingRun.started_at).desc())
    ).first()
