"""A migrated database has the schema of the code, however it got there and however many processes took it there."""

import subprocess
import sys

import pytest
from sqlalchemy import text as sql

from feedback.errors import SchemaMismatch
from feedback.health import check_database, schema_problems
from feedback.ledger import ensure_user
from feedback.migrate import current_revision, head_revision, upgrade
from feedback.schema import EFFECTIVE_VOTE_VIEW
from feedback.settings import Settings
from feedback.store import Store, connect, open_store


def test_the_migrated_schema_is_the_schema_of_the_code(empty_settings: Settings) -> None:
    store = open_store(empty_settings)
    try:
        with store.read() as session:
            assert schema_problems(session.connection()) == []
    finally:
        store.close()
    assert check_database(empty_settings).problems == []


def test_the_check_sees_what_differs(empty_settings: Settings) -> None:
    """Without this, an empty list of problems would prove nothing."""
    store = open_store(empty_settings)
    try:
        with store.write() as session:
            session.execute(sql("DROP VIEW effective_vote"))
            session.execute(sql("ALTER TABLE policy ADD COLUMN stray INTEGER"))
            session.execute(sql("DROP INDEX ix_reply_prompt_digest"))
            session.execute(sql("DROP TABLE lease"))
    finally:
        store.close()
    problems = " ".join(check_database(empty_settings).problems)
    for missing in ("effective_vote", "stray", "ix_reply_prompt_digest", "lease"):
        assert missing in problems


def test_the_views_of_migration_and_code_agree(store: Store) -> None:
    """The migration's view is frozen; the schema's text is what people read. They must say the same."""
    with store.write() as session:
        session.execute(sql(EFFECTIVE_VOTE_VIEW.replace("effective_vote", "of_the_code")))
        if store.is_sqlite:
            query = "SELECT sql FROM sqlite_master WHERE name = :name"
        else:
            query = "SELECT definition FROM pg_views WHERE viewname = :name"
        migrated, coded = (
            session.execute(sql(query), {"name": name}).scalar_one().replace(name, "x")
            for name in ("effective_vote", "of_the_code")
        )
        assert migrated == coded
        session.rollback()


def test_migrating_again_changes_nothing_and_keeps_the_rows(empty_settings: Settings) -> None:
    store = connect(empty_settings)
    try:
        assert current_revision(store) is None
        assert upgrade(store) is True
        assert current_revision(store) == head_revision()
        with store.write() as session:
            ensure_user(session, "ada")
        assert upgrade(store) is False
        with store.read() as session:
            assert session.execute(sql("SELECT id FROM user_account")).scalars().all() == ["ada"]
    finally:
        store.close()


def test_a_database_from_the_future_is_left_alone(empty_settings: Settings) -> None:
    store = open_store(empty_settings)
    with store.write() as session:
        session.execute(sql("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(SchemaMismatch, match="9999"):
        open_store(empty_settings)
    assert any("9999" in problem for problem in check_database(empty_settings).problems)


def test_a_migration_that_fails_leaves_nothing(empty_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view comes last: a name that is taken makes it fail when all tables are there."""
    store = connect(empty_settings)
    try:
        with store.write() as session:
            session.execute(sql("CREATE TABLE effective_vote (x INTEGER)"))
        with pytest.raises(Exception, match="effective_vote"):
            upgrade(store)
        assert current_revision(store) is None
        with store.write() as session:
            session.execute(sql("DROP TABLE effective_vote"))
        assert upgrade(store) is True
    finally:
        store.close()


_START = """
import sys
from feedback.settings import Settings
from feedback.store import open_store
sys.stdin.readline()
open_store(Settings()).close()
print("open")
"""


def test_processes_that_start_at_once_migrate_once(empty_settings: Settings) -> None:
    environment = {"KUDOS_HOME": str(empty_settings.home), "KUDOS_DATABASE_URL": empty_settings.database}
    if empty_settings.database_url is None:
        del environment["KUDOS_DATABASE_URL"]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONPATH": ":".join(sys.path)},
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [child.communicate(timeout=240) for child in children]
    ended = [(child.returncode, out) for child, (out, _) in zip(children, results, strict=True)]
    assert ended == [(0, "open\n")] * 4, results
    assert check_database(empty_settings).problems == []


def test_a_users_votes_have_an_index(empty_settings: Settings) -> None:
    """That of the constraint on keys, which begins with the user: one of its own would be written with each vote."""
    store = open_store(empty_settings)
    try:
        with store.read() as session:
            if store.is_sqlite:
                plan = session.execute(sql("EXPLAIN QUERY PLAN SELECT * FROM vote WHERE user_id = 'somebody'"))
                assert "USING INDEX sqlite_autoindex_vote_2 (user_id=?)" in plan.one().detail
            else:
                found = session.execute(sql("SELECT indexdef FROM pg_indexes WHERE tablename = 'vote'")).scalars()
                assert any("(user_id, idempotency_key)" in each for each in found)
    finally:
        store.close()
