"""What can go wrong in the log, and the HTTP status that each error deserves.

FeedbackError
├── UnknownTarget        404  no such reply or comparison, or it is someone else's (it does not tell which)
├── Unvotable            409  the reply is unfinished, failed or empty
├── IllegalTransition    409  a reply that has ended cannot end differently
├── UnknownPrompt        404  no such system prompt, version of one, or key to use it for
├── UserErased           410  the user was erased, and their id is not used again
├── BadBallot            422  the vote itself is malformed
├── IdempotencyConflict  422  the key was used before, with another body
├── BadPrompt            422  a name, a text or weights that cannot be
├── BadImport            422  a file that cannot be read at all
├── BadCursor            422  a place in the log from which nobody can read on
├── ExportUnavailable    501  a kind of file that this installation cannot write
├── SchemaMismatch       500  the database was written by another version of kudos
└── StorageError         503  the database did not take the write
    ├── StorageBusy      503  locked, disconnected or overloaded; trying again is right
    └── StorageFull      507  no space left; trying again is not
"""

import sqlite3

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class FeedbackError(Exception):
    status: int = 500
    code: str = "internal_error"


class UnknownTarget(FeedbackError):
    status = 404
    code = "not_found"


class Unvotable(FeedbackError):
    status = 409
    code = "not_votable"


class IllegalTransition(FeedbackError):
    status = 409
    code = "illegal_transition"


class UserErased(FeedbackError):
    status = 410
    code = "user_erased"


class BadBallot(FeedbackError):
    status = 422
    code = "bad_ballot"


class IdempotencyConflict(FeedbackError):
    status = 422
    code = "idempotency_conflict"


class BadImport(FeedbackError):
    status = 422
    code = "bad_import"


class UnknownPrompt(FeedbackError):
    status = 404
    code = "unknown_prompt"


class BadPrompt(FeedbackError):
    status = 422
    code = "bad_prompt"


class BadCursor(FeedbackError):
    status = 422
    code = "bad_cursor"


class ExportUnavailable(FeedbackError):
    status = 501
    code = "export_unavailable"


class SchemaMismatch(FeedbackError):
    status = 500
    code = "schema_mismatch"


class StorageError(FeedbackError):
    status = 503
    code = "storage_unavailable"


class StorageBusy(StorageError):
    status = 503
    code = "storage_busy"


class StorageFull(StorageError):
    status = 507
    code = "storage_full"


_SQLITE_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
}
# SQLSTATE classes: 08 connection, 40 rollback, 53 resources, 57 operator intervention, 58 system.
_POSTGRES_UNAVAILABLE = ("08", "40", "53", "57", "58")
_POSTGRES_RETRY = {"40001", "40P01", "55P03"}


def storage_error(error: BaseException) -> StorageError | None:
    """The storage error behind a driver's exception; None when the statement itself was at fault."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, PoolTimeout):
        return StorageBusy("no database connection became free")
    if not isinstance(error, DBAPIError):
        return None
    # The driver's message alone: SQLAlchemy's holds the statement's parameters, which are people's words.
    message = str(error.orig).strip() or type(error.orig).__name__
    if _is_full(error.orig):
        return StorageFull(f"the database has no space left: {message}")
    if error.connection_invalidated or _is_unavailable(error.orig):
        return StorageBusy(f"the database is not available: {message}")
    return None


def _is_full(driver: object) -> bool:
    code = getattr(driver, "sqlite_errorcode", None)
    return (code is not None and code & 0xFF == sqlite3.SQLITE_FULL) or getattr(driver, "sqlstate", None) == "53100"


def _is_unavailable(driver: object) -> bool:
    code = getattr(driver, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_UNAVAILABLE
    state = getattr(driver, "sqlstate", None)
    if state is None:  # psycopg could not connect, or the server went away without a word
        return type(driver).__name__ == "OperationalError"
    return state in _POSTGRES_RETRY or state.startswith(_POSTGRES_UNAVAILABLE)


def is_retryable(error: BaseException) -> bool:
    """A deadlock or a serialization failure: the statement lost a race and may win the next one."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _POSTGRES_RETRY
