"""The two kinds of transaction, and the settings that make them durable."""

import multiprocessing
import time
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError

from feedback.errors import FeedbackError, StorageBusy, StorageError
from feedback.health import database_bytes
from feedback.ledger import ensure_user
from feedback.schema import User, now
from feedback.settings import Settings
from feedback.store import Store, WriterLock, database_url, open_store


def users(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.execute(sql("SELECT id FROM user_account ORDER BY id")).scalars())


def test_a_write_is_all_or_nothing(store: Store) -> None:
    with store.write() as session:
        ensure_user(session, "ada")
        session.add(User(id="bob"))
    assert users(store) == ["ada", "bob"]

    def half() -> None:
        with store.write() as session:
            ensure_user(session, "eve")
            session.add(User(id="mal"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert users(store) == ["ada", "bob"]


def test_a_read_cannot_write(store: Store) -> None:
    with pytest.raises((DBAPIError, StorageError), match=r"read-?only"), store.read() as session:
        ensure_user(session, "ada")
    with store.write() as session:  # the same pooled connection writes again afterwards
        ensure_user(session, "bob")
    assert users(store) == ["bob"]


def test_a_read_is_one_snapshot(store: Store) -> None:
    count = sql("SELECT count(*) FROM user_account")
    with store.read() as session:
        assert session.execute(count).scalar_one() == 0
        with store.write() as other:
            ensure_user(other, "ada")
        assert session.execute(count).scalar_one() == 0
    with store.read() as session:
        assert session.execute(count).scalar_one() == 1


def test_the_database_knows_its_size(store: Store) -> None:
    with store.read() as session:
        empty = database_bytes(session)
    with store.write() as session:
        session.add_all(User(id=f"{number:0200d}") for number in range(2_000))
    with store.read() as session:
        assert empty + 2_000 * 200 < database_bytes(session) < empty + 20_000_000


def test_times_keep_their_zone(store: Store) -> None:
    at = now()
    with store.write() as session:
        session.add(User(id="ada", created_at=at))
    with store.read() as session:
        found = session.get(User, "ada")
    assert found is not None
    assert found.created_at == at
    assert found.created_at.utcoffset() is not None
    with pytest.raises(Exception, match="naive"), store.write() as session:
        session.add(User(id="bob", created_at=at.replace(tzinfo=None)))


def test_sqlite_is_set_up_to_be_durable(tmp_path: Path) -> None:
    store = open_store(Settings(home=tmp_path / "home", database_url=None))
    try:
        for access in (store.read, store.write):
            with access() as session:
                found = {
                    name: session.execute(sql(f"PRAGMA {name}")).scalar_one()
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                }
            assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    finally:
        store.close()
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0  # people's words are the owner's alone to read


def test_which_urls_are_understood(tmp_path: Path) -> None:
    for url in (
        "postgres://u:secret@host/db",
        "postgresql://u:secret@host/db",
        "postgresql+psycopg://u:secret@host/db",
    ):
        parsed = database_url(url)
        assert (parsed.drivername, parsed.password) == ("postgresql+psycopg", "secret")
    assert database_url(f"sqlite:///{tmp_path}/x.db").database == f"{tmp_path}/x.db"
    for url in ("mysql://host/db", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(FeedbackError, match="database_url"):
            database_url(url)
    assert "secret" not in repr(Settings(database_url=SecretStr("postgresql://u:secret@host/db")))


def _hold(path: str, ready: object, release: object) -> None:
    with WriterLock(Path(path)).held():
        ready.set()  # type: ignore[attr-defined]
        release.wait(300)  # type: ignore[attr-defined]


def test_the_writer_lock_holds_between_processes_and_goes_with_its_holder(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    path = tmp_path / "x.db-writer"
    child = spawn.Process(target=_hold, args=(str(path), ready, release))
    child.start()
    assert ready.wait(120)
    started = time.monotonic()
    with pytest.raises(StorageBusy, match="another process"), WriterLock(path, timeout_seconds=0.2).held():
        pass
    assert time.monotonic() - started >= 0.2
    child.kill()  # holding it: the kernel lets go for it
    child.join()
    with WriterLock(path, timeout_seconds=5).held():
        pass


def test_a_second_writer_waits_and_then_says_so(tmp_path: Path) -> None:
    """A stranger (say, the sqlite3 shell) that holds the database makes writers busy, not stuck and not broken."""
    store = open_store(Settings(home=tmp_path, database_url=None))
    stranger = Store(f"sqlite:///{tmp_path}/kudos.db")
    try:
        with store.engine.connect() as connection:  # warm: the pool's connection carries the busy timeout
            connection.exec_driver_sql("PRAGMA busy_timeout = 100")
        raw = stranger.engine.raw_connection()
        raw.execute("BEGIN IMMEDIATE")  # type: ignore[attr-defined]
        with pytest.raises(StorageBusy, match="locked"), store.write() as session:
            ensure_user(session, "ada")
        raw.execute("ROLLBACK")  # type: ignore[attr-defined]
        raw.close()
        with store.write() as session:
            ensure_user(session, "ada")
        assert users(store) == ["ada"]
    finally:
        stranger.close()
        store.close()
