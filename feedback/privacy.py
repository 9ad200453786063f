"""Taking people's words out of the log: one user's at their wish (`erase`), old conversations by their age (`expire`).

Rows are deleted in one transaction beside which nobody writes, so that nothing of an erased user can arrive late: a
reply that is being written finds no row to end in, and its user is known as erased from then on. Then the words are
taken out of the runs' folders, and the database's file is rewritten. Each step may be repeated: an erasure that was
broken off is finished by another one. What it does not reach is in docs/privacy.md.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import CursorResult, exists, func, or_, select
from sqlalchemy.orm import Session

from feedback.errors import UnknownTarget
from feedback.run_files import forget_words
from feedback.schema import (
    ApiKey,
    Comparison,
    Conversation,
    Policy,
    Reply,
    RunState,
    TrainingRun,
    TrainingSample,
    User,
    Vote,
    now,
)
from feedback.statements import columns, insert_ignore, table
from feedback.store import Store
from feedback.tombstones import tombstone_id

ON_BEHALF = "on_behalf"  # the scope of a key that stands for a product and not for a person
_WITH_WORDS = (Vote, Comparison, Reply, Conversation)
_PAGE = 200  # conversations that expire in one transaction: short enough not to keep a running server waiting


@dataclass(frozen=True)
class Erasure:
    """What went. `policies` learned from this user, or descend from one that did; they stay as they are."""

    user_id: str
    conversations: int
    replies: int
    votes: int  # every revision
    policies: list[str]


@dataclass(frozen=True)
class Expiry:
    conversations: int = 0
    replies: int = 0
    votes: int = 0


def holdings(session: Session, user_id: str) -> Erasure:
    """What an erasure would take now; nothing, where the user was erased already.

    Raises:
        UnknownTarget: nobody has, or had, this id.
    """
    user = columns(User)
    living = (user.id == user_id) & user.erased_at.is_(None)
    if session.execute(select(user.id).where(or_(living, user.id == tombstone_id(user_id)))).first() is None:
        raise UnknownTarget(f"there is no user {user_id}")

    def rows(model: Any) -> int:
        count = select(func.count()).select_from(table(model)).where(columns(model).user_id == user_id)
        return session.execute(count).scalar_one()

    return Erasure(user_id, rows(Conversation), rows(Reply), rows(Vote), trained_on(session, user_id))


def trained_on(session: Session, user_id: str) -> list[str]:
    """Policies that this user's votes taught, or that descend from one, by number. Also of a user who was erased."""
    sample, policy = columns(TrainingSample), columns(Policy)
    mine = sample.user_id.in_([user_id, tombstone_id(user_id)])
    runs = set(session.execute(select(sample.run_id).where(mine).distinct()).scalars())
    found: list[str] = []
    for row in session.execute(select(policy.version, policy.run_id, policy.parent_version).order_by(policy.number)):
        if row.run_id in runs or row.parent_version in found:  # a parent comes before its children
            found.append(row.version)
    return found


def erase(store: Store, runs_folder: Path, user_id: str) -> Erasure:
    """Erases one user from the database and from the files of training runs on this machine.

    Raises:
        UnknownTarget: nobody has, or had, this id.
        StorageBusy: the rows are gone, but somebody reads SQLite's file all the while: erase again.
    """
    with store.write(alone=True) as session:
        erased = holdings(session, user_id)
        _bury(session, user_id)
        _forget_runs(session, tombstone_id(user_id))
    clear_run_files(store, runs_folder)
    store.scrub()
    return erased


def expire(store: Store, runs_folder: Path, days: int) -> Expiry:
    """Deletes the conversations without a new reply for so many days, with their replies and votes."""
    conversation = columns(Conversation)
    old = select(conversation.id).where(conversation.updated_at < now() - timedelta(days=days)).limit(_PAGE)
    total = Expiry()
    while True:
        with store.write(alone=True) as session:
            gone = _delete_conversations(session, list(session.execute(old).scalars()))
            _forget_runs(session)
        if not gone.conversations:
            break
        total = Expiry(total.conversations + gone.conversations, total.replies + gone.replies, total.votes + gone.votes)
    clear_run_files(store, runs_folder)
    if total.conversations:
        store.scrub()
    return total


def clear_run_files(store: Store, runs_folder: Path) -> None:
    """Takes the words of votes that are gone out of the runs on this machine.

    A trainer with a home folder of its own does this before each run: an erasure elsewhere cannot reach its files.
    """
    run = columns(TrainingRun)
    at_rest = run.state.in_([RunState.SUCCEEDED.value, RunState.ERASED.value])  # the others may still need their files
    with store.read() as session:
        ended = select(run.id).where(run.id.in_(_runs_of_lost_votes()), at_rest)
        runs = list(session.execute(ended).scalars())
    for run_id in runs:
        forget_words(runs_folder / run_id)


def _bury(session: Session, user_id: str) -> None:
    tombstone, sample, user = tombstone_id(user_id), columns(TrainingSample), columns(User)
    for model in _WITH_WORDS:
        session.execute(table(model).delete().where(columns(model).user_id == user_id))
    session.execute(table(TrainingSample).update().where(sample.user_id == user_id).values(user_id=tombstone))
    # A key that speaks for others keeps its name: it is part of the ids of a product's users.
    for key in session.execute(select(ApiKey).where(columns(ApiKey).user_id == user_id)).scalars():
        if ON_BEHALF not in key.scopes:
            key.user_id, key.label, key.revoked_at = tombstone, "erased", key.revoked_at or now()
    session.execute(table(User).delete().where(user.id == user_id))
    at = now()
    insert_ignore(session, User, {"id": tombstone, "created_at": at, "consent": False, "erased_at": at})


def _delete_conversations(session: Session, ids: list[str]) -> Expiry:
    reply, comparison, vote = columns(Reply), columns(Comparison), columns(Vote)
    replies = select(reply.id).where(reply.conversation_id.in_(ids))
    comparisons = select(comparison.id).where(comparison.conversation_id.in_(ids))

    def deleted(model: Any, condition: Any) -> int:
        result = session.execute(table(model).delete().where(condition))
        assert isinstance(result, CursorResult)
        return result.rowcount

    votes = deleted(Vote, or_(vote.target_id.in_(replies), vote.target_id.in_(comparisons)))
    deleted(Comparison, comparison.conversation_id.in_(ids))
    return Expiry(
        replies=deleted(Reply, reply.conversation_id.in_(ids)),
        conversations=deleted(Conversation, columns(Conversation).id.in_(ids)),
        votes=votes,
    )


def _runs_of_lost_votes() -> Any:
    """Ids of the runs that learned from a vote which is no longer there. Votes go in no other way than from here."""
    sample = columns(TrainingSample)
    return select(sample.run_id).where(~exists().where(columns(Vote).id == sample.vote_id))


def _forget_runs(session: Session, tombstone: str | None = None) -> None:
    """Unfinished runs that lose their examples cannot go on. One that runs is stopped for an erasure alone: it has
    not published yet, and what merely grew old may be learned from to the end."""
    run, sample = columns(TrainingRun), columns(TrainingSample)
    stopped = run.state.in_([RunState.FAILED.value, RunState.INTERRUPTED.value])
    if tombstone is not None:
        own = select(sample.run_id).where(sample.user_id == tombstone)
        stopped = or_(stopped, (run.state == RunState.RUNNING.value) & run.id.in_(own))
    session.execute(
        table(TrainingRun)
        .update()
        .where(run.id.in_(_runs_of_lost_votes()), stopped)
        .values(
            state=RunState.ERASED.value,
            error="votes that it learned from were erased: start a new run",
            message="votes that it learned from were erased",
            finished_at=now(),
            updated_at=now(),
        )
    )
    # The gate's evidence names phrases that people wrote into their corrections.
    for row in session.execute(select(TrainingRun).where(run.id.in_(_runs_of_lost_votes()))).scalars():
        if "evaluation" in row.metrics:
            row.metrics = {**row.metrics, "evaluation": _without_phrases(row.metrics["evaluation"])}
    for policy in session.execute(select(Policy).where(columns(Policy).run_id.in_(_runs_of_lost_votes()))).scalars():
        policy.report = _without_phrases(policy.report)


def _without_phrases(report: dict[str, Any]) -> dict[str, Any]:
    extra = report.get("extra") or {}
    if not extra.get("pushed_phrases"):
        return report
    return {**report, "extra": {**extra, "pushed_phrases": ["(erased)"] * len(extra["pushed_phrases"])}}
