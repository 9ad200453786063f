"""When the watcher starts a run, which one, and what it does when that ends badly. On a real store."""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from deploy import lease as leases
from feedback.schema import RunState, TrainingRun, User, now
from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.trainer.models import make_tokenizer
from tests.trainer.votes import write_votes
from trainer.config import TrainerSettings
from trainer.errors import TrainerError
from trainer.held_lease import LEASE
from trainer.watch import REQUEST_FILE, Watcher, give_up, new_votes

TOKENIZER = make_tokenizer()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=None)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()


@pytest.fixture
def watcher(settings: Settings, store: Store) -> Watcher:
    return Watcher(settings, TrainerSettings(after_votes=10, poll_seconds=0.01), store, say=lambda text: None)


def _run(store: Store, run_id: str, state: RunState, *, last_vote_id: int = 0, minutes_ago: int = 0) -> None:
    with store.write() as session:
        session.add(
            TrainingRun(
                id=run_id, state=state, last_vote_id=last_vote_id, started_at=now() - timedelta(minutes=minutes_ago)
            )
        )


def _state(store: Store, run_id: str) -> str:
    with store.read() as session:
        row = session.get(TrainingRun, run_id)
        assert row is not None
        return row.state


def test_nothing_is_due_before_enough_votes_have_come_in(store: Store, watcher: Watcher) -> None:
    assert watcher.due() is None
    write_votes(store, TOKENIZER, pairs=4, thumbs=5)
    assert watcher.due() is None
    write_votes(store, TOKENIZER, pairs=0, thumbs=1, seed=1)
    assert watcher.due() == []


def test_only_votes_since_the_last_run_count(store: Store, watcher: Watcher) -> None:
    write_votes(store, TOKENIZER, pairs=0, thumbs=25)
    _run(store, "run-1", RunState.SUCCEEDED, last_vote_id=20)
    with store.read() as session:
        assert new_votes(session, consent_default=True) == 5
    assert watcher.due() is None
    write_votes(store, TOKENIZER, pairs=0, thumbs=5, seed=1)
    assert watcher.due() == []


def test_votes_of_people_who_did_not_agree_wake_nobody(store: Store, watcher: Watcher) -> None:
    write_votes(store, TOKENIZER, pairs=0, thumbs=30, users=1)
    assert watcher.due() == []
    with store.write() as session:
        user = session.get(User, "u-0")
        assert user is not None
        user.consent = False
        session.add(user)
    assert watcher.due() is None


def test_an_operators_request_starts_a_run_at_once(settings: Settings, watcher: Watcher) -> None:
    (settings.home / REQUEST_FILE).touch()
    assert watcher.due() == []


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.INTERRUPTED])
def test_a_run_whose_process_died_is_resumed_before_a_new_one_starts(
    store: Store, watcher: Watcher, state: RunState
) -> None:
    write_votes(store, TOKENIZER, pairs=0, thumbs=30)
    _run(store, "run-old", state, minutes_ago=60)
    _run(store, "run-new", state)
    _run(store, "run-failed", RunState.FAILED)
    assert watcher.due() == ["--resume", "run-new"]


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED])
def test_a_run_that_has_ended_is_not_resumed(store: Store, watcher: Watcher, state: RunState) -> None:
    _run(store, "run-1", state)
    assert watcher.due() is None


def test_while_another_trainer_holds_the_lease_nothing_is_due(
    settings: Settings, store: Store, watcher: Watcher
) -> None:
    """Otherwise the watcher's run would be refused the lease, and the other's run be marked as failed."""
    write_votes(store, TOKENIZER, pairs=0, thumbs=30)
    _run(store, "run-of-somebody", RunState.RUNNING)
    held = leases.acquire(store, LEASE, "somebody", 60)
    assert watcher.due() is None
    (settings.home / REQUEST_FILE).touch()
    assert watcher.due() is None
    leases.release(store, held)
    assert watcher.due() == ["--resume", "run-of-somebody"]


def test_it_says_when_a_run_begins_and_what_came_of_it(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nice").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "nice").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with store.write() as session:
        message, report = "v1-0a1b2c3d is accepted", "runs/run-1/report.html"
        session.add(TrainingRun(id="run-1", state=RunState.SUCCEEDED, message=message, report_path=report))
    _run(store, "run-0", RunState.SUCCEEDED, minutes_ago=60)
    said: list[str] = []
    watcher = Watcher(settings, TrainerSettings(poll_seconds=0.01), store, say=said.append)
    watcher._train([])
    _run(store, "run-2", RunState.FAILED)
    watcher._train(["--resume", "run-1"])
    ended = f"v1-0a1b2c3d is accepted (report: {tmp_path / report}), after 0.0 min"
    assert said == ["a training run begins", ended, "training goes on with run-1", ended]


@pytest.fixture
def ends_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nice`, by which runs are started, is a script that dies as if it were killed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nice").write_text("#!/bin/sh\nkill -9 $$\n")
    (folder / "nice").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("ends_badly")
def test_a_new_run_that_is_killed_stays_resumable(store: Store, watcher: Watcher) -> None:
    _run(store, "run-1", RunState.RUNNING)
    watcher._train([])
    assert _state(store, "run-1") == RunState.RUNNING
    assert watcher.due() == ["--resume", "run-1"]


@pytest.mark.usefixtures("ends_badly")
def test_a_run_that_dies_when_resumed_is_given_up(store: Store, watcher: Watcher) -> None:
    """Also where a younger one has failed since; it would be resumed for ever."""
    _run(store, "run-1", RunState.RUNNING, minutes_ago=60)
    _run(store, "run-2", RunState.FAILED)
    watcher._train(["--resume", "run-1"])
    assert _state(store, "run-1") == RunState.FAILED
    assert watcher.due() is None


@pytest.mark.usefixtures("ends_badly")
def test_a_run_that_another_trainer_was_quicker_to_resume_stays_its(store: Store, watcher: Watcher) -> None:
    _run(store, "run-1", RunState.RUNNING)
    leases.acquire(store, LEASE, "the quicker one", 60)
    watcher._train(["--resume", "run-1"])
    assert _state(store, "run-1") == RunState.RUNNING


@pytest.mark.usefixtures("ends_badly")
def test_between_runs_that_fail_it_waits_longer_each_time_unless_an_operator_asks(
    settings: Settings, store: Store
) -> None:
    watcher = Watcher(settings, TrainerSettings(poll_seconds=30), store, say=lambda text: None)
    assert watcher._may_try()
    pauses = []
    for _ in range(5):
        watcher._train([])
        assert not watcher._may_try()
        pauses.append(round(watcher._not_before - time.monotonic()))
    assert pauses == [30, 120, 480, 600, 600]
    (settings.home / REQUEST_FILE).touch()
    assert watcher._may_try()


def test_an_operator_gives_a_run_up_for_good(store: Store, watcher: Watcher) -> None:
    for run_id, state in (("run-1", RunState.INTERRUPTED), ("run-2", RunState.SUCCEEDED)):
        _run(store, run_id, state)
    held = leases.acquire(store, LEASE, "somebody", 60)
    with pytest.raises(TrainerError, match="a trainer is at work: end it first"):
        give_up(store, "run-1", "")
    leases.release(store, held)
    give_up(store, "run-1", "an operator gave it up")
    assert _state(store, "run-1") == RunState.FAILED
    assert watcher.due() is None
    with pytest.raises(TrainerError, match="run-2 has ended"):
        give_up(store, "run-2", "")
    with pytest.raises(TrainerError, match="there is no run run-3"):
        give_up(store, "run-3", "")


def test_settings_come_from_the_environment_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_TRAIN_AFTER_VOTES", "7")
    assert TrainerSettings().after_votes == 7
    monkeypatch.setenv("KUDOS_TRAIN_AFTER_VOTES", "0")
    with pytest.raises(ValueError, match="after_votes"):
        TrainerSettings()
