"""The database behind the log: SQLite by default, PostgreSQL by URL; and the two kinds of transaction.

`read()` is one consistent snapshot that cannot write. `write()` is one transaction, committed once, at its end. On
SQLite every write transaction of every process takes the same file lock around BEGIN IMMEDIATE ... COMMIT: see
docs/decisions/0002-one-writer-per-database.md. This module holds no queries.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session

from feedback.errors import FeedbackError, StorageBusy, storage_error
from feedback.settings import Settings

BUSY_TIMEOUT_SECONDS = 5.0
_WRITE = "kudos_write"
_TOGETHER = text("SELECT pg_advisory_xact_lock_shared(:key)").bindparams(key=0x6B75646F73_02)
_ALONE = text("SELECT pg_advisory_xact_lock(:key)").bindparams(key=0x6B75646F73_02)


class WriterLock:
    """An exclusive lock on a file beside the database, shared by all threads and processes that write to it.

    The kernel drops it when its holder dies, so a crash leaves nothing behind.
    """

    def __init__(self, path: Path, timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._threads = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        deadline = time.monotonic() + self._timeout_seconds
        if not self._threads.acquire(timeout=self._timeout_seconds):
            raise StorageBusy(f"another thread has been writing for {self._timeout_seconds:g} s")
        try:
            # Opened anew each time: a descriptor that a fork shares would share the lock as well.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._wait(descriptor, deadline)
                yield
            finally:
                os.close(descriptor)
        finally:
            self._threads.release()

    def _wait(self, descriptor: int, deadline: float) -> None:
        pause_seconds = 0.0005
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageBusy(f"another process has been writing for {self._timeout_seconds:g} s") from None
                time.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 0.01)
            else:
                return


class Store:
    """Hands out sessions. Safe to share between threads; not between processes."""

    def __init__(self, url: str) -> None:
        self.url = database_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writer = WriterLock(Path(f"{self.url.database}-writer")) if self.is_sqlite else None
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A snapshot: two queries in it see the same rows. Writing in it is an error."""
        options: dict[str, Any] = (
            {} if self.is_sqlite else {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        )
        with (
            _translated(),
            self.engine.connect().execution_options(**options) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session  # closing ends the transaction; a rollback would empty the objects that the caller keeps

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[Session]:
        """One transaction, committed when the block ends and rolled back when it raises."""
        with self.transaction(alone=alone) as connection, Session(connection, expire_on_commit=False) as session:
            # The session joins the transaction and leaves the commit to it: one commit, at the edge.
            yield session
            session.flush()

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[Connection]:
        """What `write` and the ledger are made of. Storage errors come out as `StorageError`.

        alone: on PostgreSQL too, it begins after all writes before it were committed, and ends before any other begins.
        """
        with (
            _translated(),
            self._writer.held() if self._writer else nullcontext(),
            self.engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            if not self.is_sqlite:
                connection.execute(_ALONE if alone else _TOGETHER)
            yield connection

    def scrub(self) -> None:
        """Leaves in SQLite's files nothing of what was deleted: rewrites the database, then empties the log of writes.

        Zeroing deleted rows is not enough: a row that SQLite moves to another page leaves a copy behind, which no
        later deletion finds. PostgreSQL's files are its operator's.

        Raises:
            StorageBusy: somebody reads an older state all the while, and needs the old pages.
        """
        if self._writer is None:
            return
        # Under the writers' lock: a checkpoint beside a write is what it guards against.
        with _translated(), self._writer.held():
            pooled = self.engine.raw_connection()
            driver: Any = pooled.driver_connection
            try:
                driver.execute("PRAGMA query_only = 0")
                driver.execute("VACUUM")
                readers, *_ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except driver.Error as error:
                raise DBAPIError("VACUUM", None, error) from error
            finally:
                pooled.close()
        if readers:
            raise StorageBusy("the rows are deleted, but somebody still reads the old pages of the file: do it again")

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        mapped = storage_error(error)
        if mapped is None:
            raise
        raise mapped from error


def database_url(url: str) -> URL:
    """The URL with the driver that kudos uses; `postgres://` and `postgresql://` are both understood."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise FeedbackError(f"database_url: {backend!r} is not supported; use sqlite:///... or postgresql://...")
    if not parsed.database or parsed.database == ":memory:":
        raise FeedbackError("database_url: SQLite needs a file, because votes must outlive the process")
    return parsed


def _from_json(text: str | bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:  # Python writes a loss that is not a number as NaN, which JSON does not have
        return json.loads(text)


# Both engines hide parameters: an error's text ends up in logs, and parameters are people's words.


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
        pool_size=8,
        max_overflow=24,
        hide_parameters=True,
        json_deserializer=_from_json,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin by itself, and too late
        _enter_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted or changed is overwritten with zeros

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql(f"PRAGMA query_only = {0 if writing else 1}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    # SQLAlchemy compiles every savepoint statement anew, which is a third of what a vote costs.
    for name, verb in _SAVEPOINTS.items():
        setattr(engine.dialect, name, partial(_savepoint, verb))
    return engine


_SAVEPOINTS = {
    "do_savepoint": "SAVEPOINT",
    "do_rollback_to_savepoint": "ROLLBACK TO",
    "do_release_savepoint": "RELEASE",
}


def _savepoint(verb: str, connection: Connection, name: str) -> None:
    driver: Any = connection.connection.driver_connection
    driver.execute(f"{verb} {name}")


def _enter_wal(connection: Any) -> None:
    # Two processes that open a new file at once: SQLite answers "locked" to one of them without waiting.
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except connection.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _postgres_engine(url: URL) -> Engine:
    # pool_pre_ping: after the server was restarted, the first request would otherwise fail for each old connection.
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        connect_args={"connect_timeout": 10},
        hide_parameters=True,
        json_deserializer=_from_json,
    )


def connect(settings: Settings) -> Store:
    """The database as it is, whatever its schema; SQLite's folder is made."""
    if settings.database_url is None:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Store(settings.database)


def open_store(settings: Settings) -> Store:
    """Migrates the database to this version's schema, then opens it."""
    from feedback.migrate import upgrade  # Alembic is slow to import, and most commands never come here

    store = connect(settings)
    try:
        upgrade(store)
    except BaseException:
        store.close()
        raise
    return store
