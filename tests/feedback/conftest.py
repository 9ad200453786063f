"""Stores on both databases, and the rows that a test needs to have something to vote on."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

from feedback.ids import new_id, prompt_digest
from feedback.ledger import Ledger, begin_comparison, begin_reply, finish_reply
from feedback.schema import Comparison, Reply, ReplyState
from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.fixtures_postgres import PostgresServer

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


class MigratedDatabases:
    """Lends migrated PostgreSQL databases, emptied between two borrowers.

    A database is three hundred files, which cost more to make and to remove than most tests take.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._free: list[str] = []

    @contextmanager
    def borrow(self) -> Iterator[str]:
        if self._free:
            url = self._free.pop()
        else:
            url = self._server.new_database()
            open_store(Settings(database_url=SecretStr(url))).close()
        yield url
        # A session that a test left open still holds its tables: then this fails, and says so, instead of waiting.
        names = ", ".join(f'"{name}"' for name in SQLModel.metadata.tables)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '10s'")
            connection.execute(f"TRUNCATE {names} RESTART IDENTITY".encode())
        self._free.append(url)


@pytest.fixture(scope="session")
def migrated_databases(postgres_server: PostgresServer) -> MigratedDatabases:
    return MigratedDatabases(postgres_server)


@pytest.fixture(params=BOTH)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a migrated database without a row."""
    if request.param == "sqlite":
        yield Settings(home=tmp_path / "home", database_url=None)
        return
    databases: MigratedDatabases = request.getfixturevalue("migrated_databases")
    with databases.borrow() as url:
        yield Settings(home=tmp_path / "home", database_url=SecretStr(url))


@pytest.fixture(params=BOTH)
def empty_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a database without a single table."""
    if request.param == "sqlite":
        return Settings(home=tmp_path / "home", database_url=None)
    return Settings(home=tmp_path / "home", database_url=SecretStr(request.getfixturevalue("postgres_url")))


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()


@pytest.fixture
def ledger(store: Store) -> Iterator[Ledger]:
    opened = Ledger(store)
    yield opened
    opened.close()


_numbers = count(1)


def new_reply(
    user_id: str = "ada", *, prompt: str | None = None, conversation_id: str | None = None, **fields: object
) -> Reply:
    """A reply that is about to be generated; its prompt is new unless one is given."""
    messages = [{"role": "user", "content": prompt or f"question {next(_numbers)}"}]
    values: dict[str, object] = {
        "id": new_id("chatcmpl"),
        "conversation_id": conversation_id or new_id("conv"),
        "user_id": user_id,
        "messages": messages,
        "prompt_digest": prompt_digest(messages),
        "policy_version": "v1-aaaaaaaa",
    }
    return Reply(**(values | fields))


def add_reply(
    session: Session,
    user_id: str = "ada",
    *,
    state: str = ReplyState.COMPLETE,
    text: str = "hello",
    mixed_versions: list[str] | None = None,
    **fields: object,
) -> str:
    """A reply that has ended in `state`, or is still streaming."""
    reply_id = begin_reply(session, new_reply(user_id, **fields))  # type: ignore[arg-type]
    if state != ReplyState.STREAMING:
        finish_reply(
            session,
            reply_id,
            state=state,
            text=text,
            token_ids=[5, 6, 7],
            logprobs=[-0.5, -0.25, -1.0],
            prompt_token_ids=[1, 2],
            finish_reason="stop",
            mixed_versions=mixed_versions,
        )
    return reply_id


def add_comparison(
    session: Session,
    user_id: str = "ada",
    *,
    prompt: str | None = None,
    states: tuple[str, str] = (ReplyState.COMPLETE, ReplyState.COMPLETE),
    texts: tuple[str, str] = ("left text", "right text"),
) -> str:
    conversation_id = new_id("conv")
    question = prompt or f"question {next(_numbers)}"
    left, right = (new_reply(user_id, prompt=question, conversation_id=conversation_id) for _ in range(2))
    comparison = Comparison(
        id=new_id("cmp"),
        user_id=user_id,
        conversation_id=conversation_id,
        left_reply_id=left.id,
        right_reply_id=right.id,
        propensity=0.5,
    )
    begin_comparison(session, comparison, left, right)
    for reply, state, text in zip((left, right), states, texts, strict=True):
        if state != ReplyState.STREAMING:
            finish_reply(session, reply.id, state=state, text=text, token_ids=[3], logprobs=[-1.0])
    return comparison.id
