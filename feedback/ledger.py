"""The ledger: what appends conversations, replies and votes, one writer thread per process, commits grouped.

An operation is a function of a session. Many are run in one transaction, each in a savepoint of its own, where it needs
one, so that one that fails fails alone, and no future resolves before the COMMIT that made its rows durable. One fsync
thus serves everybody who waits. The operations themselves are in `feedback.replies` and `feedback.votes`.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlmodel import Session

from feedback.errors import FeedbackError, StorageBusy, StorageError, is_retryable, storage_error
from feedback.replies import (
    begin_comparison,
    begin_reply,
    ensure_conversation,
    ensure_user,
    finish_reply,
    recover_unfinished,
)
from feedback.store import Store

__all__ = [
    "Ledger",
    "begin_comparison",
    "begin_reply",
    "ensure_conversation",
    "ensure_user",
    "finish_reply",
    "recover_unfinished",
]

T = TypeVar("T")

_MAX_ATTEMPTS = 5  # of one operation that keeps losing deadlocks
_POSTGRES_BATCH = 60  # beyond 64 open subtransactions PostgreSQL spills them to disk


class _Takes(Enum):
    OBJECTS = auto()  # a session
    STATEMENTS = auto()  # the connection
    ONE_ROW = auto()  # the connection, and writes so little that SQLite needs no savepoint for it


@dataclass(slots=True)
class _Job:
    operation: Callable[[Any], Any]
    future: "Future[Any]"
    takes: _Takes
    attempts: int = 0


@dataclass(slots=True)
class _Outcome:
    value: Any = None
    error: Exception | None = None
    again: bool = False


class Ledger:
    """The one writer of this process. Thread-safe; `close()` commits what was submitted before it."""

    def __init__(self, store: Store, *, max_waiting: int = 10_000, max_batch: int = 256) -> None:
        self._store = store
        self._max_batch = max_batch if store.is_sqlite else min(max_batch, _POSTGRES_BATCH)
        self._max_waiting = max_waiting
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # a fifth of what a Queue costs
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kudos-ledger", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[Session], T]) -> "Future[T]":
        """Runs `operation` in the writer thread. Every failure, a full queue included, comes out of the future.

        Once submitted, an operation is carried out: cancelling the future (which a client that goes away does,
        through asyncio) only stops the waiting. The operation may run more than once, each time on a clean slate, so
        it must touch nothing but its session.
        """
        return self._put(operation, _Takes.OBJECTS)

    def submit_statements(self, operation: Callable[[Connection], T], *, one_row: bool = False) -> "Future[T]":
        """The same for an operation that loads no objects: a connection saves it what a session costs.

        one_row: it writes one row at most, and nothing after it fails, so there never is half of it to be taken back.
        """
        return self._put(operation, _Takes.ONE_ROW if one_row else _Takes.STATEMENTS)

    def _put(self, operation: Callable[[Any], T], takes: _Takes) -> "Future[T]":
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        with self._gate:
            if self._closed:
                future.set_exception(StorageBusy("the ledger is closed"))
                return future
            if self._waiting.qsize() >= self._max_waiting:
                future.set_exception(StorageBusy(f"{self._max_waiting} writes are waiting already"))
            else:
                self._waiting.put(_Job(operation, future, takes))
        return future

    @property
    def waiting(self) -> int:
        """Operations that no transaction has picked up yet."""
        return self._waiting.qsize()

    def close(self) -> None:
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch, last = self._next_batch()
            while batch:
                batch = self._commit(batch)
            if last:
                return

    def _next_batch(self) -> tuple[list[_Job], bool]:
        # No waiting for company: while one batch is being synced to disk, the next one gathers by itself.
        batch: list[_Job] = []
        job = self._waiting.get()
        while job is not None:
            batch.append(job)
            if len(batch) >= self._max_batch:
                return batch, False
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> list[_Job]:
        """Returns the jobs that lost a race in the database and have to be run again."""
        outcomes: list[_Outcome] = []
        try:
            with self._store.transaction() as connection:
                for job in batch:
                    outcomes.append(_apply(connection, job))
        except BaseException as error:  # isolates: this thread must outlive whatever happens to one batch
            failure = error if isinstance(error, FeedbackError) else storage_error(error)
            if failure is None:
                failure = StorageError(f"the transaction failed: {type(error).__name__}")
                failure.__cause__ = error
            for job in batch:
                job.future.set_exception(failure)
            return []
        again = []
        for job, outcome in zip(batch, outcomes, strict=True):
            if outcome.again:
                again.append(job)
            elif outcome.error is not None:
                job.future.set_exception(outcome.error)
            else:
                job.future.set_result(outcome.value)
        return again


def _apply(connection: Connection, job: _Job) -> _Outcome:
    job.attempts += 1
    try:
        if job.takes is _Takes.ONE_ROW and connection.dialect.name == "sqlite":
            return _Outcome(value=job.operation(connection))  # a statement that fails takes itself back, and no more
        if job.takes is not _Takes.OBJECTS:
            with _savepoint(connection):
                return _Outcome(value=job.operation(connection))
        # A session of its own: what one operation has loaded or broken, no other one sees.
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            value = job.operation(session)
            session.commit()  # releases the savepoint; the transaction commits for all
            return _Outcome(value=value)
    except Exception as error:  # isolates: one operation that fails fails alone
        if is_retryable(error) and job.attempts < _MAX_ATTEMPTS:
            return _Outcome(again=True)
        # Where the savepoint could not be rolled back either, that second error hides the one that says why.
        failure = storage_error(error) or (storage_error(error.__context__) if error.__context__ else None)
        if failure is not None and not is_retryable(error):
            raise failure from error  # the disk or the connection is gone, and with it the whole transaction
        if not _in_transaction(connection):
            # SQLite ends the whole transaction on some errors; going on would commit each statement by itself.
            raise StorageError(f"an operation ended everybody's transaction: {type(error).__name__}") from error
        return _Outcome(error=failure or error)


@contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """What `Connection.begin_nested` does, without its book-keeping, which costs as much as a vote."""
    dialect = connection.dialect
    dialect.do_savepoint(connection, "operation")
    try:
        yield
    except BaseException:
        dialect.do_rollback_to_savepoint(connection, "operation")
        raise
    dialect.do_release_savepoint(connection, "operation")


def _in_transaction(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return bool(driver.in_transaction)
    return driver is not None and not driver.closed
