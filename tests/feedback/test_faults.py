"""The Nth statement fails, for every N: whatever is half written is not there, and the same again succeeds."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

from feedback.errors import StorageError
from feedback.imports import import_whole
from feedback.ledger import Ledger, finish_reply
from feedback.samples import collect, record_lineage
from feedback.schema import Comparison
from feedback.statements import table
from feedback.store import Store
from feedback.votes import Ballot, cast_vote, withdraw_vote
from tests.feedback.conftest import add_comparison, add_reply
from tests.feedback.test_hh import hh_line

WAIT_SECONDS = 30
Operation = Callable[[Session], Any]


class Broken(Exception):
    """Not a storage error: the operation's own failure."""


@contextmanager
def nth_statement_fails(store: Store, number: int, error: BaseException) -> Iterator[list[str]]:
    """Counts the data statements of all connections; the `number`th raises instead of running."""
    seen: list[str] = []

    def before(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("PRAGMA", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "SELECT pg_advisory")):
            return
        seen.append(statement)
        if len(seen) == number:
            raise error

    event.listen(store.engine, "before_cursor_execute", before)
    try:
        yield seen
    finally:
        event.remove(store.engine, "before_cursor_execute", before)


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    with store.read() as session:
        return {
            name: sorted((tuple(row) for row in session.execute(found.select())), key=repr)
            for name, found in SQLModel.metadata.tables.items()
        }


@pytest.fixture
def operations(store: Store, tmp_path) -> dict[str, Operation]:  # type: ignore[no-untyped-def]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(hh_line(f"question {number}", "good", "bad") for number in range(3)))
    with store.write() as session:
        voted, unvoted, streaming = add_reply(session), add_reply(session), add_reply(session, state="streaming")
        comparison_id = add_comparison(session)
        cast_vote(session, user_id="ada", target_kind="reply", target_id=voted, ballot=Ballot(thumb="up"))

    def cast(target_id: str, kind: str = "reply", **fields: Any) -> Operation:
        return lambda session: cast_vote(
            session,
            user_id="ada",
            target_kind=kind,
            target_id=target_id,
            ballot=Ballot(**fields),
            idempotency_key=f"key of {target_id}",
        )

    return {
        "first vote": cast(unvoted, thumb="up"),
        "changed vote": cast(voted, thumb="down"),
        "choice": cast(comparison_id, "comparison", choice="left"),
        "withdrawal": lambda session: withdraw_vote(session, user_id="ada", target_kind="reply", target_id=voted),
        "new reply": lambda session: add_reply(session, "bob"),
        "new comparison": lambda session: add_comparison(session, "bob"),
        "end of a reply": lambda session: finish_reply(session, streaming, state="complete", text="done"),
        "import": lambda session: import_whole(session, path),
        "lineage": lambda session: record_lineage(session, "run-1", None, collect(session, consent_default=True)),
    }


NAMES = [
    "first vote", "changed vote", "choice", "withdrawal", "new reply", "new comparison", "end of a reply", "import",
    "lineage",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_at_any_statement_leaves_nothing(store: Store, operations: dict[str, Operation], name: str) -> None:
    assert set(operations) == set(NAMES)
    before = everything(store)
    ledger = Ledger(store)
    try:
        for number in range(1, 200):
            with nth_statement_fails(store, number, Broken(f"at {number}")) as seen:
                failure = ledger.submit(operations[name]).exception(WAIT_SECONDS)
            if len(seen) < number:
                assert failure is None
                break
            assert isinstance(failure, Broken), failure
            assert everything(store) == before, f"half written: {seen[-1]}"
        assert number > 1, "the operation ran no statement at all"
        assert everything(store) != before
    finally:
        ledger.close()


def test_a_storage_failure_fails_all_and_the_ledger_goes_on(store: Store, operations: dict[str, Operation]) -> None:
    driver = sqlite3.OperationalError("disk I/O error")
    driver.sqlite_errorcode = sqlite3.SQLITE_IOERR  # type: ignore[misc]
    before = everything(store)
    ledger = Ledger(store)
    try:
        with nth_statement_fails(store, 2, OperationalError("", {}, driver)):
            failure = ledger.submit(operations["new comparison"]).exception(WAIT_SECONDS)
        assert isinstance(failure, StorageError), failure
        assert failure.status == 503
        assert everything(store) == before
        ledger.submit(operations["new comparison"]).result(WAIT_SECONDS)
    finally:
        ledger.close()
    with store.read() as session:
        assert len(session.execute(table(Comparison).select()).all()) == 2


def test_a_commit_that_fails_is_told_to_the_whole_batch(store: Store, operations: dict[str, Operation]) -> None:
    """Nobody is told that theirs is written, not even those whose own statements all went well."""
    driver = sqlite3.OperationalError("database or disk is full")
    driver.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
    before = everything(store)

    def fail(_connection: Any) -> None:
        raise OperationalError("", {}, driver)

    ledger = Ledger(store)
    try:
        event.listen(store.engine, "commit", fail)
        futures = [ledger.submit(operations[name]) for name in NAMES]
        failures = [future.exception(WAIT_SECONDS) for future in futures]
        event.remove(store.engine, "commit", fail)
        assert [getattr(failure, "status", None) for failure in failures] == [507] * len(NAMES)
        assert everything(store) == before
        assert ledger.submit(operations["first vote"]).result(WAIT_SECONDS).outcome == "accepted"
    finally:
        ledger.close()
