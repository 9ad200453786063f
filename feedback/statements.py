"""The few statements that SQLite and PostgreSQL share but SQLAlchemy spells per dialect. Not a query builder."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Executable, Float, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import GenericFunction
from sqlmodel import SQLModel

Executor = Session | Connection
"""What runs statements. A connection costs less, and is enough where no objects are loaded."""


def dialect_of(executor: Executor) -> str:
    return (executor if isinstance(executor, Connection) else executor.get_bind()).dialect.name


class seconds_between(GenericFunction[float]):
    """(earlier, later): the time from one to the other. SQLite keeps milliseconds only."""

    type = Float()
    inherit_cache = True


@compiles(seconds_between, "sqlite")
def _on_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    earlier, later = (compiler.process(each, **options) for each in element.clauses)
    return f"((julianday({later}) - julianday({earlier})) * 86400.0)"


@compiles(seconds_between, "postgresql")
def _on_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    earlier, later = (compiler.process(each, **options) for each in element.clauses)
    return f"CAST(EXTRACT(EPOCH FROM ({later} - {earlier})) AS DOUBLE PRECISION)"


def table(model: type[SQLModel]) -> Table:
    found = model.__table__  # type: ignore[attr-defined]
    assert isinstance(found, Table)
    return found


def columns(model: type[SQLModel]) -> Any:
    """The columns as SQLAlchemy types them; SQLModel's attributes are typed as the values they hold."""
    return table(model).c


@lru_cache(maxsize=64)
def insert_if_new(dialect: str, target: Table) -> Executable:
    """An insert that gives the new primary key, or nothing where a unique constraint says that the row is there."""
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(target).on_conflict_do_nothing().returning(*target.primary_key.columns)


def insert_ignore(executor: Executor, model: type[SQLModel], row: dict[str, Any]) -> Any:
    """Inserts the row and returns its primary key; None when a unique constraint says that it is there already.

    Unlike catching IntegrityError, a conflict does not end PostgreSQL's transaction. `row` must name every column
    whose Python-side default it does not want.
    """
    return executor.execute(insert_if_new(dialect_of(executor), table(model)), row).scalar()


def insert_ignore_many(session: Session, model: type[SQLModel], rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        session.execute(insert(table(model)).on_conflict_do_nothing(), list(rows))


def upsert_many(session: Session, model: type[SQLModel], rows: Sequence[dict[str, Any]], *, key: Sequence[str]) -> None:
    """Inserts the rows; one that is there already, by the unique `key`, takes the new row's other columns."""
    if not rows:
        return
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(table(model))
    rest = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=rest), list(rows))


def insert_many(session: Session, model: type[SQLModel], rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        session.execute(table(model).insert(), list(rows))
