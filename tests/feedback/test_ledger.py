"""The writer thread: what it acknowledges is durable, what fails fails alone, and it outlives every failure."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy import text as sql
from sqlalchemy.orm import Session

from feedback.errors import IllegalTransition, StorageBusy, StorageError, StorageFull, UnknownTarget, Unvotable
from feedback.ledger import (
    Ledger,
    begin_reply,
    ensure_conversation,
    ensure_user,
    finish_reply,
    recover_unfinished,
)
from feedback.packing import unpack_ids, unpack_logprobs
from feedback.replies import recover_abandoned
from feedback.schema import Comparison, Replica, Reply, now
from feedback.settings import Settings
from feedback.store import Store, WriterLock, open_store
from feedback.verdicts import counts, effective_votes
from feedback.votes import Ballot, cast_vote
from tests.feedback.conftest import add_comparison, add_reply, new_reply
from tests.fixtures_postgres import PostgresServer, make_postgres_server

WAIT_SECONDS = 30


def committed_users(settings: Settings) -> set[str]:
    """What a stranger sees: through a driver of its own, not through the store under test."""
    if settings.database_url is None:
        with closing(sqlite3.connect(settings.home / "kudos.db")) as connection:
            return {row[0] for row in connection.execute("SELECT id FROM user_account")}
    with psycopg.connect(settings.database) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM user_account")}


def add_user(name: str):  # type: ignore[no-untyped-def]
    return lambda session: ensure_user(session, name)


class Gate:
    """Keeps the writer busy in one operation, so that what is submitted meanwhile becomes one batch."""

    def __init__(self, ledger: Ledger) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.future: Future[bool] = ledger.submit(self._wait)
        assert self.entered.wait(WAIT_SECONDS)

    def _wait(self, _session: Session) -> bool:
        self.entered.set()
        return self.opened.wait(WAIT_SECONDS)


def test_what_is_acknowledged_is_there_for_a_stranger(settings: Settings, ledger: Ledger) -> None:
    for number in range(20):
        ledger.submit(add_user(f"u{number}")).result(WAIT_SECONDS)
        assert f"u{number}" in committed_users(settings)


def test_no_future_resolves_before_the_commit_of_its_batch(settings: Settings, ledger: Ledger) -> None:
    first = Gate(ledger)
    early = ledger.submit(add_user("early"))
    late = Gate.__new__(Gate)
    late.entered, late.opened = threading.Event(), threading.Event()
    late.future = ledger.submit(late._wait)
    first.opened.set()
    assert late.entered.wait(WAIT_SECONDS)  # `early` has run, in the transaction that `late` holds open
    assert not early.done()
    assert "early" not in committed_users(settings)
    late.opened.set()
    early.result(WAIT_SECONDS)
    assert "early" in committed_users(settings)


def test_one_that_fails_fails_alone(settings: Settings, ledger: Ledger) -> None:
    gate = Gate(ledger)

    def breaks(session: Session) -> None:
        ensure_user(session, "half")
        raise KeyError("mine")

    def violates(session: Session) -> None:
        ensure_user(session, "half as well")
        session.execute(sql("INSERT INTO user_account (id, created_at) VALUES ('u1', '2026-01-01')"))

    def refused(session: Session) -> None:
        cast_vote(session, user_id="u1", target_kind="reply", target_id="none", ballot=Ballot(thumb="up"))

    futures = [
        ledger.submit(operation)
        for operation in (add_user("u1"), breaks, add_user("u2"), violates, refused, add_user("u3"))
    ]
    gate.opened.set()
    wait(futures, WAIT_SECONDS)
    errors = [future.exception() for future in futures]
    assert [type(error).__name__ for error in errors] == [
        "NoneType",
        "KeyError",
        "NoneType",
        "IntegrityError",
        "UnknownTarget",
        "NoneType",
    ]
    assert committed_users(settings) == {"u1", "u2", "u3"}


def test_many_wait_for_one_commit(store: Store) -> None:
    """Group commit: what gathers during one commit is committed by the next."""
    commits = 0

    def counted(_connection: object) -> None:
        nonlocal commits
        commits += 1

    with closing(Ledger(store, max_batch=50)) as ledger:
        gate = Gate(ledger)
        futures = [ledger.submit(add_user(f"u{number}")) for number in range(100)]
        event.listen(store.engine, "commit", counted)
        gate.opened.set()
        wait([gate.future, *futures], WAIT_SECONDS)
    event.remove(store.engine, "commit", counted)
    assert 3 <= commits <= 4  # the gate's own, and two of fifty
    assert all(future.exception() is None for future in futures)


def test_a_full_queue_and_a_closed_ledger_say_busy(store: Store, settings: Settings) -> None:
    ledger = Ledger(store, max_waiting=3)
    gate = Gate(ledger)
    futures = [ledger.submit(add_user(f"u{number}")) for number in range(5)]
    assert ledger.waiting == 3
    assert [type(future.exception(WAIT_SECONDS)) for future in futures[3:]] == [StorageBusy, StorageBusy]
    gate.opened.set()
    ledger.close()  # what was accepted is still written
    assert committed_users(settings) == {"u0", "u1", "u2"}
    assert isinstance(ledger.submit(add_user("late")).exception(WAIT_SECONDS), StorageBusy)
    ledger.close()


async def test_a_client_that_goes_away_does_not_undo_its_write(settings: Settings, ledger: Ledger) -> None:
    """asyncio cancels the future that it wraps: the reply of a user who left must be written all the same."""
    gate = Gate(ledger)
    written = ledger.submit(add_user("gone"))
    waiting = asyncio.ensure_future(asyncio.wrap_future(written))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.opened.set()
    written.result(WAIT_SECONDS)
    assert "gone" in committed_users(settings)
    ledger.submit(add_user("next")).result(WAIT_SECONDS)  # and the writer thread is alive


@pytest.fixture
def sqlite_store(tmp_path) -> Iterator[Store]:  # type: ignore[no-untyped-def]
    store = open_store(Settings(home=tmp_path, database_url=None))
    yield store
    store.close()


@pytest.mark.parametrize("way", ["submit", "submit_statements"])
def test_a_full_disk_fails_the_batch_and_then_it_recovers(sqlite_store: Store, way: str) -> None:
    """SQLite's own limit on pages gives SQLITE_FULL exactly as a full disk does."""

    def limit(session: Session, pages: int) -> None:
        session.execute(sql(f"PRAGMA max_page_count = {pages}"))

    def fill(session: Session) -> None:
        ensure_conversation(session, conversation_id="big", user_id="ada", title="x" * 1_000_000)

    with closing(Ledger(sqlite_store)) as ledger:
        pages = ledger.submit(lambda session: session.execute(sql("PRAGMA page_count")).scalar_one()).result(30)
        ledger.submit(lambda session: limit(session, pages + 2)).result(30)
        gate = Gate(ledger)
        small, big = ledger.submit(add_user("with it")), getattr(ledger, way)(fill)
        gate.opened.set()
        error = big.exception(30)
        assert isinstance(error, StorageFull)
        assert error.status == 507
        assert "xxx" not in str(error)  # no words of people in what is logged
        # SQLite rolls the whole transaction back, so nobody in it may be told that theirs is written.
        small_error = small.exception(30)
        with sqlite_store.read() as session:
            there = session.execute(sql("SELECT count(*) FROM user_account WHERE id = 'with it'")).scalar_one()
        assert there == (1 if small_error is None else 0)
        with sqlite_store.write() as session:
            limit(session, 1_000_000)
        ledger.submit(fill).result(30)
        ledger.submit(add_user("after")).result(30)
    with sqlite_store.read() as session:
        assert session.execute(sql("SELECT length(title) FROM conversation")).scalar_one() == 1_000_000


def test_an_operation_that_ends_everybodys_transaction_fails_everybody(sqlite_store: Store) -> None:
    """Otherwise what came after it in the batch would be committed statement by statement, outside any transaction."""

    def ends_it(session: Session) -> None:
        session.execute(sql("INSERT OR ROLLBACK INTO user_account (id, created_at) VALUES ('ada', '2026-01-01')"))

    with closing(Ledger(sqlite_store)) as ledger:
        ledger.submit(add_user("ada")).result(30)
        gate = Gate(ledger)
        futures = [ledger.submit(operation) for operation in (add_user("before"), ends_it, add_user("behind"))]
        gate.opened.set()
        assert [type(future.exception(30)) for future in futures] == [StorageError] * 3
        ledger.submit(add_user("after")).result(30)
    with sqlite_store.read() as session:
        there = session.execute(sql("SELECT id FROM user_account ORDER BY id")).scalars().all()
    assert there == ["ada", "after"]


def test_a_locked_database_is_busy_and_then_it_recovers(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sqlite_store._writer is not None
    monkeypatch.setattr(sqlite_store._writer, "_timeout_seconds", 0.2)
    with closing(Ledger(sqlite_store)) as ledger:
        with WriterLock(sqlite_store._writer._path).held():
            error = ledger.submit(add_user("ada")).exception(30)
            assert isinstance(error, StorageBusy)
            assert error.status == 503
        ledger.submit(add_user("bob")).result(30)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    server = make_postgres_server()
    yield server
    server.close()


@pytest.mark.postgres
def test_a_database_that_restarts_is_busy_and_then_it_recovers(own_postgres: PostgresServer) -> None:
    settings = Settings(database_url=SecretStr(own_postgres.new_database()))
    store = open_store(settings)
    with closing(store), closing(Ledger(store)) as ledger:
        ledger.submit(add_user("before")).result(30)
        entered, opened = threading.Event(), threading.Event()

        def interrupted(session: Session) -> None:
            ensure_user(session, "during")
            entered.set()
            assert opened.wait(30)

        during = ledger.submit(interrupted)  # its transaction is open when the server goes
        assert entered.wait(30)
        own_postgres.stop()
        behind = ledger.submit(add_user("behind"))
        opened.set()
        for future in (during, behind):
            error = future.exception(30)
            assert isinstance(error, StorageError), error
            assert error.status == 503
        own_postgres.start()
        ledger.submit(add_user("after")).result(30)
        assert committed_users(settings) == {"before", "after"}


@pytest.mark.postgres
def test_two_ledgers_that_deadlock_both_get_through(postgres_url: str) -> None:
    """Two replicas that touch the same rows in opposite order: PostgreSQL ends one of them, and it is run again."""
    settings = Settings(database_url=SecretStr(postgres_url))
    stores = [open_store(settings) for _ in range(2)]
    ledgers = [Ledger(store) for store in stores]
    barrier = threading.Barrier(2)
    meetings = 0

    def crossing(first: str, second: str):  # type: ignore[no-untyped-def]
        def operation(session: Session) -> None:
            nonlocal meetings
            touch = sql("UPDATE user_account SET consent = true WHERE id = :id")
            session.execute(touch, {"id": first})
            if meetings < 2:  # the first time, both wait until each holds its first row
                meetings += 1
                barrier.wait(WAIT_SECONDS)
            session.execute(touch, {"id": second})

        return operation

    try:
        for name in ("a", "b"):
            ledgers[0].submit(add_user(name)).result(WAIT_SECONDS)
        futures = [ledgers[0].submit(crossing("a", "b")), ledgers[1].submit(crossing("b", "a"))]
        assert [future.exception(WAIT_SECONDS) for future in futures] == [None, None]
    finally:
        for ledger, store in zip(ledgers, stores, strict=True):
            ledger.close()
            store.close()


def test_a_reply_from_its_beginning_to_its_end(store: Store) -> None:
    began = now()
    with store.write() as session:
        reply_id = begin_reply(session, new_reply(conversation_id="conv-1", prompt="你好"))
    with store.read() as session:
        reply = session.get(Reply, reply_id)
        assert reply is not None
        assert (reply.state, reply.text, reply.token_ids, reply.mixed_versions) == ("streaming", "", None, None)
        assert reply.messages == [{"role": "user", "content": "你好"}]
    with store.write() as session:
        finish_reply(
            session,
            reply_id,
            state="complete",
            text="你好!",
            token_ids=[151_643, 0],
            logprobs=[-0.5, -2.25],
            prompt_token_ids=[9, 8],
            finish_reason="stop",
            first_token_at=began,
            policy_version="v2-bbbbbbbb",
        )
    with store.read() as session:
        reply = session.get(Reply, reply_id)
        assert reply is not None
        assert (reply.state, reply.text, reply.policy_version) == ("complete", "你好!", "v2-bbbbbbbb")
        assert unpack_ids(reply.token_ids) == [151_643, 0]
        assert unpack_logprobs(reply.logprobs) == [-0.5, -2.25]
        assert unpack_ids(reply.prompt_token_ids) == [9, 8]
        assert reply.first_token_at == began
        assert reply.finished_at is not None
        assert reply.finished_at >= began


ENDS = ["complete", "stopped", "failed", "incomplete"]


@pytest.mark.parametrize("first", ENDS)
def test_a_reply_ends_once(store: Store, first: str) -> None:
    with store.write() as session:
        reply_id = add_reply(session, state=first, text="end")
        finish_reply(session, reply_id, state=first, text="end")  # the same end again, after a lost answer, is no error
        for second in ENDS:
            with pytest.raises(IllegalTransition):
                finish_reply(session, reply_id, state=second, text="another end")
        with pytest.raises(IllegalTransition):
            finish_reply(session, reply_id, state="streaming", text="end")
        with pytest.raises(UnknownTarget):
            finish_reply(session, "no-such-reply", state=first, text="")
        with pytest.raises(ValueError, match="logprobs"):
            finish_reply(session, reply_id, state=first, text="end", token_ids=[1], logprobs=[])
    with store.read() as session:
        assert counts(session).replies == {first: 1}


def test_a_conversation_belongs_to_its_user(store: Store) -> None:
    with store.write() as session:
        add_reply(session, "ada", conversation_id="shared")
    with pytest.raises(UnknownTarget), store.write() as session:
        add_reply(session, "eve", conversation_id="shared")
    with store.read() as session:
        assert (counts(session).conversations, counts(session).replies) == (1, {"complete": 1})


def test_a_comparison_ties_its_replies(store: Store) -> None:
    with store.write() as session:
        comparison_id = add_comparison(session)
    with store.read() as session:
        comparison = session.get(Comparison, comparison_id)
        assert comparison is not None
        for side in ("left", "right"):
            reply = session.get(Reply, getattr(comparison, f"{side}_reply_id"))
            assert reply is not None
            assert (reply.side, reply.comparison_id, reply.user_id) == (side, comparison_id, "ada")
            assert reply.conversation_id == comparison.conversation_id


def test_what_was_streaming_when_the_server_died_is_incomplete(store: Store) -> None:
    with store.write() as session:
        add_reply(session)
        half = add_reply(session, state="streaming")
        add_comparison(session, states=("streaming", "complete"))
    with store.write() as session:
        assert recover_unfinished(session, "here") == 2
    with store.write() as session:
        assert recover_unfinished(session, "here") == 0
        with pytest.raises(Unvotable):
            cast_vote(session, user_id="ada", target_kind="reply", target_id=half, ballot=Ballot(thumb="up"))
    with store.read() as session:
        assert counts(session).replies == {"complete": 2, "incomplete": 2}


def test_the_streams_of_other_servers_are_left_alone(store: Store) -> None:
    """Unless a server has not been heard of for long."""
    long_ago = now() - timedelta(hours=1)
    with store.write() as session:
        session.add(Replica(id="there", address="http://there"))
        session.add(Replica(id="gone", address="http://gone", heartbeat_at=long_ago))
        mine, theirs, young, old, of_nobody = (
            add_reply(session, state="streaming", replica_id=replica_id, created_at=at)
            for replica_id, at in (
                ("here", now()), ("there", long_ago), ("gone", now()), ("gone", long_ago), ("never heard of", long_ago)
            )
        )  # fmt: skip
    with store.write() as session:
        assert recover_unfinished(session, "here") == 3
    with store.read() as session:
        states = {each: session.get_one(Reply, each).state for each in (mine, theirs, young, old, of_nobody)}
    assert [each for each, state in states.items() if state == "streaming"] == [theirs, young]


def test_a_server_that_lives_ends_the_streams_of_those_that_never_came_back(store: Store) -> None:
    long_ago = now() - timedelta(hours=1)
    with store.write() as session:
        session.add(Replica(id="there", address="http://there"))
        mine, theirs, old = (
            add_reply(session, state="streaming", replica_id=replica_id, created_at=long_ago)
            for replica_id in ("here", "there", "gone")
        )
    with store.write() as session:
        assert recover_abandoned(session, "here") == 1, "its own are being written, whatever its row says"
    with store.read() as session:
        states = [session.get_one(Reply, each).state for each in (mine, theirs, old)]
    assert states == ["streaming", "streaming", "incomplete"]


def test_closing_waits_for_what_is_queued(settings: Settings, store: Store) -> None:
    ledger = Ledger(store)
    futures = [ledger.submit(add_user(f"u{number}")) for number in range(500)]
    started = time.monotonic()
    ledger.close()
    assert time.monotonic() - started < WAIT_SECONDS
    assert all(future.done() for future in futures)
    assert len(committed_users(settings)) == 500


@pytest.mark.parametrize("one_row", [False, True])
def test_operations_on_the_connection_fail_alone_and_last(store: Store, ledger: Ledger, one_row: bool) -> None:
    with store.write() as session:
        reply_id = add_reply(session)

    def cast(target: str) -> Any:
        return ledger.submit_statements(
            lambda connection: cast_vote(
                connection, user_id="ada", target_kind="reply", target_id=target, ballot=Ballot(thumb="up")
            ),
            one_row=one_row,
        )

    def broken(connection: Any) -> None:
        cast_vote(connection, user_id="ada", target_kind="reply", target_id=reply_id, ballot=Ballot(thumb="down"))
        raise RuntimeError("after it wrote")

    first, bad, unknown, again = cast(reply_id), ledger.submit_statements(broken), cast("none"), cast(reply_id)
    assert first.result().outcome == "accepted"
    assert [(each.arm, each.policy_version) for each in first.result().replies] == [("stable", "v1-aaaaaaaa")]
    assert first.result().replies[0].finished_at.tzinfo is not None
    with pytest.raises(RuntimeError, match="after it wrote"):
        bad.result()
    with pytest.raises(UnknownTarget):
        unknown.result()
    assert again.result().outcome == "duplicate"
    with store.read() as session:
        [vote] = effective_votes(session)
    assert (vote.thumb, vote.revision, vote.reasons, vote.harmful) == ("up", 1, [], False)


def test_a_single_row_that_is_refused_takes_nobody_with_it(settings: Settings, ledger: Ledger) -> None:
    """Neither the one before it in the transaction nor the one after, with a savepoint or without."""

    def add(user_id: str) -> Any:
        insert = sql("INSERT INTO user_account (id, created_at) VALUES (:id, '2026-01-01')")
        return ledger.submit_statements(lambda connection: connection.execute(insert, {"id": user_id}), one_row=True)

    gate = Gate(ledger)
    futures = [add(user_id) for user_id in ("u1", "u1", "u2")]
    gate.opened.set()
    wait(futures, WAIT_SECONDS)
    assert [future.exception() is None for future in futures] == [True, False, True]
    assert committed_users(settings) == {"u1", "u2"}
