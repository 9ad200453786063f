"""Brings a database to this version's schema. The scripts are in `feedback/migrations/versions`, inside the package.

Safe to run from several processes at once: one migrates, the others wait and find nothing to do. A migration is one
transaction on both databases, so that a crash leaves the old schema or the new one.
"""

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from feedback.errors import SchemaMismatch, StorageBusy
from feedback.store import Store

_ADVISORY_LOCK = 0x6B75646F73  # "kudos"
_SCRIPTS = Path(__file__).parent / "migrations"
WAIT_SECONDS = 60.0
"""For another process that migrates."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def current_revision(store: Store) -> str | None:
    with store.read() as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def upgrade(store: Store) -> bool:
    """Returns whether anything had to be done. Raises StorageBusy where somebody else writes for WAIT_SECONDS."""
    head = head_revision()
    give_up_at = time.monotonic() + WAIT_SECONDS
    while current_revision(store) != head:
        try:
            return _upgrade(store, head)
        except StorageBusy:  # a migration may take longer than a writer waits for another
            if time.monotonic() > give_up_at:
                raise
    return False


def _upgrade(store: Store, head: str) -> bool:
    with store.transaction() as connection:
        if not store.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        found = MigrationContext.configure(connection).get_current_revision()
        if found == head:
            return False
        known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
        if found is not None and found not in known:
            raise SchemaMismatch(
                f"the database is at revision {found}, which this version of kudos (at {head}) does not know: "
                "it was written by a newer version; run that version, or restore a backup"
            )
        command.upgrade(_config(connection), "head")
        return True
