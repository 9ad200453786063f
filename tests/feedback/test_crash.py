"""Killed at any moment: every vote that was acknowledged is there once, and the database is whole.

Children cast votes through a ledger and send an acknowledgement for each; SIGKILL comes whenever it comes. On SQLite a
second process writes to the same file all the while, as a trainer does beside a server.
"""

import multiprocessing
import random
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text as sql

from feedback.health import check_database
from feedback.ledger import Ledger, ensure_user, recover_unfinished
from feedback.settings import Settings
from feedback.store import open_store
from feedback.votes import Ballot, cast_vote
from tests.feedback.conftest import add_reply

KILLS = 20
_IN_FLIGHT = 40

# Forked from a process that has imported everything, a child casts its first vote within milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.feedback.test_crash"])


def settings_of(home: str, url: str | None) -> Settings:
    return Settings(home=Path(home), database_url=None if url is None else SecretStr(url))


def cast_until_killed(home: str, url: str | None, acknowledge: Connection, round_: int) -> None:
    """Each reply is begun, ended and voted on in three operations; only the vote is acknowledged."""
    store = open_store(settings_of(home, url))
    ledger = Ledger(store)
    ledger.submit(lambda session: recover_unfinished(session, "here")).result(30)
    number = 0
    while True:
        keys = [f"{round_}-{number + offset}" for offset in range(_IN_FLIGHT)]
        number += _IN_FLIGHT
        reply_ids = [ledger.submit(lambda session: add_reply(session, "ada")) for _ in keys]
        half = ledger.submit(lambda session: add_reply(session, "ada", state="streaming"))
        votes = [ledger.submit(voting(reply_id.result(30), key)) for reply_id, key in zip(reply_ids, keys, strict=True)]
        for reply_id, key, vote in zip(reply_ids, keys, votes, strict=True):
            acknowledge.send((reply_id.result(), key, vote.result(30).vote_id))
        half.result(30)


def voting(reply_id: str, key: str) -> Any:
    return lambda session: cast_vote(
        session,
        user_id="ada",
        target_kind="reply",
        target_id=reply_id,
        ballot=Ballot(thumb="up", comment=key),
        idempotency_key=key,
    )


def write_beside(home: str, url: str | None, stop: Any, acknowledge: Connection) -> None:
    store = open_store(settings_of(home, url))
    number = 0
    while not stop.is_set():
        with store.write() as session:
            ensure_user(session, f"beside-{number}")
        number += 1
        time.sleep(0.002)
    acknowledge.send(number)
    store.close()


def drain(receive: Connection, into: list[Any]) -> None:
    try:
        while receive.poll(0):
            into.append(receive.recv())
    except (EOFError, OSError):
        pass  # the child died, perhaps in the middle of a message: that one was never acknowledged


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_what_was_acknowledged_survives_every_kill(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home = str(tmp_path / "home")
    url = None if database == "sqlite" else str(request.getfixturevalue("postgres_url"))
    settings = settings_of(home, url)
    open_store(settings).close()
    dice = random.Random(20)
    acknowledged: list[tuple[str, str, int]] = []
    stop = _processes.Event()
    beside_receive, beside_send = _processes.Pipe(duplex=False)
    beside = _processes.Process(target=write_beside, args=(home, url, stop, beside_send), daemon=True)
    beside.start()
    beside_send.close()
    try:
        for round_ in range(KILLS):
            receive, send = _processes.Pipe(duplex=False)
            child = _processes.Process(target=cast_until_killed, args=(home, url, send, round_), daemon=True)
            child.start()
            send.close()
            assert receive.poll(60), "the child never acknowledged a vote"
            until = time.monotonic() + dice.uniform(0, 0.25)
            while time.monotonic() < until:
                drain(receive, acknowledged)
                time.sleep(0.001)
            child.kill()
            child.join(30)
            assert child.exitcode == -9
            drain(receive, acknowledged)
            receive.close()
    finally:
        stop.set()
    assert beside_receive.poll(60)
    written_beside = beside_receive.recv()
    beside.join(30)

    assert len(acknowledged) >= KILLS
    store = open_store(settings)
    try:
        with store.write() as session:
            assert recover_unfinished(session, "here") >= 0
        with store.read() as session:
            rows = session.execute(sql("SELECT id, target_id, comment, idempotency_key, revision FROM vote")).all()
            states = Counter(session.execute(sql("SELECT state FROM reply")).scalars())
            others = session.execute(sql("SELECT count(*) FROM user_account WHERE id LIKE 'beside-%'")).scalar_one()
        there = {(row.target_id, row.idempotency_key, row.id) for row in rows}
        missing = set(acknowledged) - there
        assert not missing, f"{len(missing)} acknowledged votes are gone"
        assert len(rows) == len({row.target_id for row in rows}) == len({row.comment for row in rows})
        assert all(row.revision == 1 for row in rows)
        assert set(states) <= {"complete", "incomplete"}
        assert others == written_beside > 0
        # A client that never got its answer asks again: the same key gives the same vote, not a second one.
        reply_id, key, vote_id = acknowledged[-1]
        with store.write() as session:
            again = voting(reply_id, key)(session)
        assert (again.vote_id, again.outcome) == (vote_id, "duplicate")
    finally:
        store.close()
    assert check_database(settings).problems == []
