"""The ledger: what appends conversations, replies and votes, one writer thread per process, commits grouped.

An operation is a function of a session. Many are run in one transaction, each in a savepoint of its own so that one
that fails fails alone, and no future resolves before the COMMIT that made its rows durable. One fsync thus serves
everybody who waits. What an operation may say about replies is here; votes are in `feedback.votes`.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select, update
from sqlalchemy.orm import Session as OrmSession
from sqlmodel import Session

from feedback.errors import (
    FeedbackError,
    IllegalTransition,
    StorageBusy,
    StorageError,
    UnknownTarget,
    is_retryable,
    storage_error,
)
from feedback.packing import pack_ids, pack_logprobs
from feedback.schema import Comparison, Conversation, Reply, ReplyState, User, now
from feedback.statements import columns, insert_ignore
from feedback.store import Store

T = TypeVar("T")

FINISHED_STATES = (ReplyState.COMPLETE, ReplyState.STOPPED)
"""The states in which a reply can be voted on (a stopped one only if it has text)."""

_TRANSITIONS: dict[str, frozenset[str]] = {
    ReplyState.STREAMING: frozenset(
        {ReplyState.COMPLETE, ReplyState.STOPPED, ReplyState.FAILED, ReplyState.INCOMPLETE}
    ),
    ReplyState.COMPLETE: frozenset(),
    ReplyState.STOPPED: frozenset(),
    ReplyState.FAILED: frozenset(),
    ReplyState.INCOMPLETE: frozenset(),
}

_MAX_ATTEMPTS = 5  # of one operation that keeps losing deadlocks
_POSTGRES_BATCH = 60  # beyond 64 open subtransactions PostgreSQL spills them to disk


@dataclass
class _Job:
    operation: Callable[[Session], Any]
    future: "Future[Any]"
    attempts: int = 0


@dataclass
class _Outcome:
    value: Any = None
    error: Exception | None = None
    again: bool = False


class Ledger:
    """The one writer of this process. Thread-safe; `close()` commits what was submitted before it."""

    def __init__(self, store: Store, *, max_waiting: int = 10_000, max_batch: int = 256) -> None:
        self._store = store
        self._max_batch = max_batch if store.is_sqlite else min(max_batch, _POSTGRES_BATCH)
        self._waiting: queue.Queue[_Job | None] = queue.Queue(maxsize=max_waiting)
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kudos-ledger", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[Session], T]) -> "Future[T]":
        """Runs `operation` in the writer thread. Every failure, a full queue included, comes out of the future.

        Once submitted, an operation is carried out: cancelling the future (which a client that goes away does,
        through asyncio) only stops the waiting. The operation may run more than once, each time on a clean slate, so
        it must touch nothing but its session.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        with self._gate:
            if self._closed:
                future.set_exception(StorageBusy("the ledger is closed"))
                return future
            try:
                self._waiting.put_nowait(_Job(operation, future))
            except queue.Full:
                future.set_exception(StorageBusy(f"{self._waiting.maxsize} writes are waiting already"))
        return future

    @property
    def waiting(self) -> int:
        """Operations that no transaction has picked up yet."""
        return self._waiting.qsize()

    def close(self) -> None:
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch, last = self._next_batch()
            while batch:
                batch = self._commit(batch)
            if last:
                return

    def _next_batch(self) -> tuple[list[_Job], bool]:
        # No waiting for company: while one batch is being synced to disk, the next one gathers by itself.
        batch: list[_Job] = []
        job = self._waiting.get()
        while job is not None:
            batch.append(job)
            if len(batch) >= self._max_batch:
                return batch, False
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> list[_Job]:
        """Returns the jobs that lost a race in the database and have to be run again."""
        outcomes: list[_Outcome] = []
        try:
            with self._store.transaction() as connection:
                for job in batch:
                    outcomes.append(_apply(connection, job))
        except BaseException as error:  # isolates: this thread must outlive whatever happens to one batch
            failure = error if isinstance(error, FeedbackError) else storage_error(error)
            if failure is None:
                failure = StorageError(f"the transaction failed: {type(error).__name__}")
                failure.__cause__ = error
            for job in batch:
                job.future.set_exception(failure)
            return []
        again = []
        for job, outcome in zip(batch, outcomes, strict=True):
            if outcome.again:
                again.append(job)
            elif outcome.error is not None:
                job.future.set_exception(outcome.error)
            else:
                job.future.set_result(outcome.value)
        return again


def _apply(connection: Connection, job: _Job) -> _Outcome:
    job.attempts += 1
    try:
        # A session of its own: what one operation has loaded or broken, no other one sees.
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            value = job.operation(session)
            session.commit()  # releases the savepoint; the transaction commits for all
            return _Outcome(value=value)
    except Exception as error:  # isolates: one operation that fails fails alone
        if is_retryable(error) and job.attempts < _MAX_ATTEMPTS:
            return _Outcome(again=True)
        failure = storage_error(error)
        if failure is not None and not is_retryable(error):
            raise failure from error  # the disk or the connection is gone, and with it the whole transaction
        return _Outcome(error=failure or error)


def ensure_user(session: OrmSession, user_id: str) -> None:
    insert_ignore(session, User, {"id": user_id, "created_at": now(), "consent": None, "erased_at": None})


def ensure_conversation(session: OrmSession, *, conversation_id: str, user_id: str, title: str = "") -> None:
    """Makes the conversation if it is new. Someone else's, or a deleted one, is unknown."""
    at = now()
    row = {"id": conversation_id, "user_id": user_id, "title": title, "created_at": at, "updated_at": at}
    if insert_ignore(session, Conversation, row):
        return
    found = session.execute(
        select(columns(Conversation).user_id, columns(Conversation).deleted_at).where(
            columns(Conversation).id == conversation_id
        )
    ).one()
    if found.user_id != user_id or found.deleted_at is not None:
        raise UnknownTarget(f"there is no conversation {conversation_id}")


def begin_reply(session: OrmSession, reply: Reply) -> str:
    """Appends a reply that is about to be generated; its conversation and user are made if they are new."""
    ensure_user(session, reply.user_id)
    ensure_conversation(session, conversation_id=reply.conversation_id, user_id=reply.user_id)
    session.execute(
        update(Conversation)
        .where(columns(Conversation).id == reply.conversation_id)
        .values(updated_at=reply.created_at)
    )
    session.add(reply)
    session.flush()
    return reply.id


def begin_comparison(session: OrmSession, comparison: Comparison, left: Reply, right: Reply) -> str:
    """Appends a comparison and its two replies, tied together and given their sides."""
    for side, reply in (("left", left), ("right", right)):
        reply.comparison_id = comparison.id
        reply.side = side
        reply.conversation_id = comparison.conversation_id
        reply.user_id = comparison.user_id
        begin_reply(session, reply)
    comparison.left_reply_id, comparison.right_reply_id = left.id, right.id
    session.add(comparison)
    session.flush()
    return comparison.id


def finish_reply(
    session: OrmSession,
    reply_id: str,
    *,
    state: str,
    text: str,
    token_ids: Sequence[int] | None = None,
    logprobs: Sequence[float] | None = None,
    finish_reason: str | None = None,
    prompt_token_ids: Sequence[int] | None = None,
    first_token_at: Any = None,
    finished_at: Any = None,
    policy_version: str | None = None,
    mixed_versions: Sequence[str] | None = None,
    template_digest: str | None = None,
) -> None:
    """Ends a streaming reply. The same end twice is one end; another end is refused.

    Fields left None keep what `begin_reply` wrote.
    """
    if state not in _TRANSITIONS[ReplyState.STREAMING]:
        raise IllegalTransition(f"a reply cannot end as {state!r}")
    if token_ids is not None and logprobs is not None and len(token_ids) != len(logprobs):
        raise ValueError(f"{len(token_ids)} token ids but {len(logprobs)} logprobs")
    text = text.replace("\x00", "\ufffd")  # a model can emit NUL, and PostgreSQL's text cannot hold it
    values: dict[str, Any] = {"state": str(state), "text": text, "finished_at": finished_at or now()}
    optional = {
        "token_ids": None if token_ids is None else pack_ids(token_ids),
        "logprobs": None if logprobs is None else pack_logprobs(logprobs),
        "finish_reason": finish_reason,
        "prompt_token_ids": None if prompt_token_ids is None else pack_ids(prompt_token_ids),
        "first_token_at": first_token_at,
        "policy_version": policy_version,
        "mixed_versions": None if mixed_versions is None else list(mixed_versions),
        "template_digest": template_digest,
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    ended = session.execute(
        update(Reply)
        .where(columns(Reply).id == reply_id, columns(Reply).state == ReplyState.STREAMING.value)
        .values(**values)
        .execution_options(synchronize_session=False)
        .returning(columns(Reply).id)
    ).first()
    if ended is not None:
        return
    found = session.execute(
        select(columns(Reply).state, columns(Reply).text).where(columns(Reply).id == reply_id)
    ).first()
    if found is None:
        raise UnknownTarget(f"there is no reply {reply_id}")
    if (found.state, found.text) != (str(state), text):
        raise IllegalTransition(f"reply {reply_id} is {found.state} already; it cannot become {state}")


def recover_unfinished(session: OrmSession) -> int:
    """Replies that were streaming when a server died become incomplete: not voted on, not trained on.

    Run once when a server starts, before it takes requests. It speaks for every reply in the database.
    """
    rows = session.execute(
        update(Reply)
        .where(columns(Reply).state == ReplyState.STREAMING.value)
        .values(state=ReplyState.INCOMPLETE.value, finished_at=now())
        .execution_options(synchronize_session=False)
        .returning(columns(Reply).id)
    )
    return len(rows.all())
