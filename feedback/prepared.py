"""Statements that are run thousands of times a second, spelled and typed once.

SQLAlchemy spends three times as long on a small statement as SQLite does. On a SQLite connection these go to the driver
as they are, with SQLAlchemy's own conversions of values both ways; anywhere else SQLAlchemy runs them.
"""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from feedback.statements import Executor, dialect_of, insert_if_new

_DIALECT = sqlite.dialect()

Convert = Callable[[Any], Any] | None


class Prepared:
    """`parameters` names them where the statement itself does not, as an insert's columns."""

    def __init__(self, statement: Any, parameters: Sequence[str] | None = None) -> None:
        self._statement = statement
        compiled: Any = statement.compile(dialect=_DIALECT, column_keys=parameters)
        self._sql = str(compiled)
        self._fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        self._taken: list[tuple[str, Convert]] = [
            (name, compiled.binds[name].type.dialect_impl(_DIALECT).bind_processor(_DIALECT))
            for name in compiled.positiontup
        ]
        columns = [(column.keyname, column.type) for column in compiled._result_columns]
        self._row = namedtuple("Row", [name for name, _ in columns])  # type: ignore[misc]
        self._given: list[tuple[int, Callable[[Any], Any]]] = [
            (at, convert)
            for at, (_, kind) in enumerate(columns)
            if (convert := kind.dialect_impl(_DIALECT).result_processor(_DIALECT, None)) is not None
        ]

    def run(self, executor: Executor, parameters: Mapping[str, Any]) -> None:
        """For what gives no rows."""
        driver = _driver(executor)
        if driver is None:
            executor.execute(self._statement, parameters)
        else:
            self._start(driver, parameters)

    def first(self, executor: Executor, parameters: Mapping[str, Any]) -> Any:
        """The first row, by the names of its columns; None where there is none."""
        driver = _driver(executor)
        if driver is None:
            return executor.execute(self._statement, parameters).first()
        row = self._start(driver, parameters).fetchone()
        if row is None:
            return None
        cells = list(row)
        for at, convert in self._given:
            cells[at] = convert(cells[at])
        return self._row(*cells)

    def _start(self, driver: sqlite3.Connection, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
        given = {**self._fixed, **parameters} if self._fixed else parameters
        values = [given[name] if convert is None else convert(given[name]) for name, convert in self._taken]
        try:
            return driver.execute(self._sql, values)
        except sqlite3.Error as error:
            raise DBAPIError(self._sql, None, error, hide_parameters=True) from error


class PreparedInsert(Prepared):
    """Of rows whose primary key is a number that the database gives."""

    def __init__(self, target: Table) -> None:
        (key,) = target.primary_key.columns
        # On SQLite the driver knows the number: having it returned costs a fifth of the insert.
        statement = sqlite.insert(target).on_conflict_do_nothing()
        super().__init__(statement, [column.name for column in target.c if column is not key])
        self._target = target

    def append(self, executor: Executor, row: Mapping[str, Any]) -> int | None:
        """The number of the new row; None when a unique constraint says that there is such a row already."""
        driver = _driver(executor)
        if driver is None:
            found: int | None = executor.execute(insert_if_new(dialect_of(executor), self._target), row).scalar()
            return found
        cursor = self._start(driver, row)
        return cursor.lastrowid if cursor.rowcount == 1 else None


def _driver(executor: Executor) -> sqlite3.Connection | None:
    if not isinstance(executor, Connection) or dialect_of(executor) != "sqlite":
        return None
    driver = executor.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
