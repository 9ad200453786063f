"""The chain of rollout events: it holds by itself, and shows whatever is done to it by hand."""

import pytest
from alembic import command
from sqlalchemy import text
from sqlmodel import col, select

from deploy import rollout
from deploy.audit import GENESIS, Audit, audit
from feedback.migrate import _config, upgrade
from feedback.migrations.versions import v0003_rollout_events_are_chained as migration
from feedback.schema import PolicyKind, RolloutEvent
from feedback.settings import Settings
from feedback.store import Store, connect
from tests.deploy.rows import add_policy


def audited(store: Store) -> Audit:
    with store.read() as session:
        return audit(session)


@pytest.fixture
def ids(store: Store) -> list[int]:
    """Of five events of one rollout."""
    with store.write() as session:
        add_policy(session, 0, PolicyKind.BASE)
        version = add_policy(session, 1)
        rollout.start(session, version, 0.1, "ada", reason="first try, 第一次")
        rollout.hold(session, "bob", "lunch")
        rollout.advance(session, "ada", share=1 / 3)
        rollout.promote(session, "ada")
        rollout.rollback(session, "controller", "complaints")
        return [event.id or 0 for event in session.exec(select(RolloutEvent).order_by(col(RolloutEvent.id)))]


def test_an_empty_log_is_whole(store: Store) -> None:
    assert audited(store) == Audit(0, GENESIS, None)


def test_a_chain_holds_and_its_head_moves_with_every_event(store: Store, ids: list[int]) -> None:
    before = audited(store)
    assert (before.events, before.broken) == (len(ids), None)
    with store.write() as session:
        rollout.start(session, "v1-00000001", 0.1, "ada")
    after = audited(store)
    assert (after.events, after.broken) == (len(ids) + 1, None)
    assert after.head != before.head


CHANGES = [
    "share = 0.9",
    "actor = 'nobody'",
    "reason = ''",
    "action = 'resume'",
    "to_state = 'promoted'",
    "from_state = NULL",
    "rollout_id = 99",
    "created_at = '2020-01-01 00:00:00+00:00'",
    "hash = '0'",
]


def test_a_row_that_is_changed_by_hand_is_named(store: Store, ids: list[int]) -> None:
    for change in CHANGES:
        with store.write() as session:
            session.execute(text(f"UPDATE rollout_event SET {change} WHERE id = {ids[1]}"))
            broken = audit(session).broken
            assert broken is not None, change
            assert broken.id == ids[1], change
            session.rollback()
    assert audited(store).broken is None


def test_rows_that_are_removed_or_change_places_are_named_where_the_chain_breaks(store: Store, ids: list[int]) -> None:
    with store.write() as session:
        session.execute(text(f"UPDATE rollout_event SET id = 1000 WHERE id = {ids[3]}"))
    found = audited(store)
    assert found.broken is not None
    assert found.broken.id == ids[4], "its predecessor now comes after it"
    with store.write() as session:
        session.execute(text(f"UPDATE rollout_event SET id = {ids[3]} WHERE id = 1000"))
    assert audited(store).broken is None
    with store.write() as session:
        session.execute(text(f"DELETE FROM rollout_event WHERE id = {ids[2]}"))
    found = audited(store)
    assert found.broken is not None
    assert found.broken.id == ids[3]


def test_events_from_before_the_chain_are_taken_into_it(settings: Settings) -> None:
    """A database of the version before, with a rollout in it, is migrated; its events are named and chained."""
    store = connect(settings)
    try:
        with store.transaction() as connection:
            command.upgrade(_config(connection), migration.down_revision)
            for to_state, from_state, share in (
                ("canary", None, 0.05),
                ("canary", "canary", 1 / 3),
                ("promoted", "canary", 1.0),
                ("rolled_back", "promoted", 0.0),
            ):
                connection.execute(
                    text(
                        "INSERT INTO rollout_event (rollout_id, from_state, to_state, share, actor, reason, created_at)"
                        " VALUES (1, :from_state, :to_state, :share, 'ada', 'why', '2026-01-02 03:04:05.678901')"
                    ),
                    {"from_state": from_state, "to_state": to_state, "share": share},
                )
        assert upgrade(store)
        found = audited(store)
        assert (found.events, found.broken) == (4, None)
        with store.read() as session:
            actions = session.exec(select(RolloutEvent.action).order_by(col(RolloutEvent.id))).all()
        assert actions == ["start", "advance", "promote", "rollback"]
        with store.write() as session:
            session.execute(text("UPDATE rollout_event SET reason = 'another' WHERE share = 1.0"))
        assert audited(store).broken is not None
    finally:
        store.close()
