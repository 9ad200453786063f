"""Is the database whole, and does it have the schema that this version expects? Reads only, repairs nothing."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

import feedback.schema  # noqa: F401 - fills the metadata
from feedback.migrate import head_revision
from feedback.settings import Settings
from feedback.store import Store


@dataclass(frozen=True)
class Health:
    database: str  # without its password
    server: str
    revision: str | None
    head: str
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_database(settings: Settings) -> Health:
    store = Store(settings.database)
    head = head_revision()
    shown = store.url.render_as_string(hide_password=True)
    try:
        if store.is_sqlite and not Path(str(store.url.database)).exists():
            return Health(shown, "sqlite", None, head, ["the database does not exist yet: run `kudos db migrate`"])
        with store.read() as session:
            connection = session.connection()
            version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
            problems = _integrity(connection) if store.is_sqlite else []
            revision = MigrationContext.configure(connection).get_current_revision()
            if revision == head:
                problems += schema_problems(connection)
            else:
                problems.append(f"the schema is at revision {revision}, not {head}: run `kudos db migrate`")
            return Health(shown, f"{connection.dialect.name} {version}", revision, head, problems)
    finally:
        store.close()


def database_bytes(session: Session) -> int:
    """What the database takes, by its own account; of SQLite without the log of its newest writes."""
    statement = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if session.get_bind().dialect.name == "sqlite"
        else "SELECT pg_database_size(current_database())"
    )
    return int(session.execute(text(statement)).scalar_one())


def schema_problems(connection: Connection) -> list[str]:
    """Every way in which the database differs from `feedback.schema`."""
    # compare_metadata speaks of the tables that kudos knows; another program's tables are none of our business.
    known = set(SQLModel.metadata.tables)
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "include_name": lambda name, kind, _parents: kind != "table" or name in known,
        },
    )
    problems = [str(difference) for difference in compare_metadata(context, SQLModel.metadata)]
    if "effective_vote" not in inspect(connection).get_view_names():
        problems.append("the view effective_vote is missing")
    return problems


def _integrity(connection: Connection) -> list[str]:
    found = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
    return [] if found == ["ok"] else found
