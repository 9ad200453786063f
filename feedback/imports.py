"""Other people's judgements into the log: each becomes a conversation, one or two replies, a vote.

Every id comes from the record itself, so the same file twice, or after a crash in its middle, adds nothing. A judgement
that its source lets people change, and that did change, is a new revision of its vote. Imported replies have text and
no token ids. Who was erased stays out, and who has said whether they agree is not asked again.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from feedback.arena import parse_arena
from feedback.errors import UnknownTarget
from feedback.hh import parse_hh
from feedback.ids import prompt_digest
from feedback.judgement import Judgement
from feedback.open_webui import parse_open_webui
from feedback.ranked import parse_ranking
from feedback.records import Problem, Progress, Record, read_records
from feedback.schema import Comparison, Conversation, Reply, ReplyState, TargetKind, User, Vote, now
from feedback.statements import columns, insert_ignore_many, insert_many
from feedback.store import Store
from feedback.tombstones import erased_among
from feedback.votes import VoteOutcome, body_digest, cast_vote

IMPORTED = "imported"  # the arm and the policy version of replies that no policy of ours wrote
_BATCH = 200  # judgements a transaction: whole ones, and short enough not to keep a running server waiting
_KEPT_PROBLEMS = 100


@dataclass(frozen=True)
class Format:
    parse: Callable[[Record], Judgement | list[Judgement] | Problem]
    tag: str  # in the ids of its rows
    can_change: bool = False


FORMATS = {
    "hh": Format(parse_hh, "hh"),
    "arena": Format(parse_arena, "ar"),
    "open-webui": Format(parse_open_webui, "ow", can_change=True),
    "rankings": Format(parse_ranking, "rk"),
}


@dataclass
class ImportSummary:
    """`lines` counts records: lines, or the elements of an array."""

    lines: int = 0
    imported: int = 0
    changed: int = 0
    already_there: int = 0
    skipped: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first hundred

    def add_problem(self, problem: Problem) -> None:
        self.skipped += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def import_file(store: Store, path: Path, format_: str = "hh", on_progress: Progress | None = None) -> ImportSummary:
    """Imports a file in many short transactions, so that a server on the same database goes on answering.

    Stopped in the middle, it leaves whole judgements; doing it again adds the rest.

    Raises:
        BadImport: the file cannot be opened or is not what its name says.
    """
    summary, chosen = ImportSummary(), FORMATS[format_]
    for batch in _batches(path, chosen, summary, on_progress):
        with store.write() as session:
            _write(session, batch, chosen, summary)
    return summary


def import_whole(session: Session, path: Path, format_: str = "hh") -> ImportSummary:
    """Imports a file in the session's one transaction: all of its good records, or none."""
    summary, chosen = ImportSummary(), FORMATS[format_]
    for batch in _batches(path, chosen, summary, None):
        _write(session, batch, chosen, summary)
    return summary


def _batches(
    path: Path, chosen: Format, summary: ImportSummary, on_progress: Progress | None
) -> Iterator[list[Judgement]]:
    def good() -> Iterator[Judgement]:
        for found in read_records(path, on_progress):
            summary.lines += 1
            read = chosen.parse(found) if isinstance(found, Record) else found
            if isinstance(read, Problem):
                summary.add_problem(read)
            else:
                yield from read if isinstance(read, list) else [read]

    judgements = good()
    while batch := list(islice(judgements, _BATCH)):
        yield batch


def _write(session: Session, batch: list[Judgement], chosen: Format, summary: ImportSummary) -> None:
    by_target = {_target(each, chosen): each for each in reversed(batch)}  # of two with one key the first counts
    known = {
        found
        for model in (Comparison, Reply)
        for found in session.execute(select(columns(model).id).where(columns(model).id.in_(list(by_target)))).scalars()
    }
    erased = erased_among(session, {each.user_id for each in batch})
    new = []
    for target, judgement in reversed(by_target.items()):
        if judgement.user_id in erased:
            summary.add_problem(Problem(judgement.number, "its user was erased"))
        elif target not in known:
            new.append(_rows(judgement, target, chosen))
        elif chosen.can_change:
            _again(session, judgement, target, summary)
        else:
            summary.already_there += 1
    summary.already_there += len(batch) - len(by_target)
    summary.imported += len(new)
    insert_ignore_many(session, User, [row["user"] for row in new])
    insert_ignore_many(session, Conversation, [row["conversation"] for row in new])
    insert_many(session, Reply, [reply for row in new for reply in row["replies"]])
    insert_many(session, Comparison, [row["comparison"] for row in new if row["comparison"]])
    insert_many(session, Vote, [row["vote"] for row in new])


def _again(session: Session, judgement: Judgement, target: str, summary: ImportSummary) -> None:
    try:
        result = cast_vote(
            session,
            user_id=judgement.user_id,
            target_kind=_kind(judgement),
            target_id=target,
            ballot=judgement.ballot,
        )
    except UnknownTarget:
        summary.add_problem(Problem(judgement.number, "its conversation was deleted here"))
        return
    if result.outcome is VoteOutcome.DUPLICATE:
        summary.already_there += 1
    else:
        summary.changed += 1


def _kind(judgement: Judgement) -> TargetKind:
    return TargetKind.COMPARISON if judgement.is_comparison else TargetKind.REPLY


def _target(judgement: Judgement, chosen: Format) -> str:
    return f"{'cmp' if judgement.is_comparison else 'chatcmpl'}-{chosen.tag}{judgement.key}"


def _rows(judgement: Judgement, target: str, chosen: Format) -> dict[str, Any]:
    at, user_id = now(), judgement.user_id
    conversation_id = f"conv-{chosen.tag}{judgement.conversation_key or judgement.key}"
    sides = ("left", "right") if judgement.is_comparison else (None,)
    propensity = 0.5 if judgement.is_comparison else 1.0
    replies = [
        {
            "id": target if side is None else f"chatcmpl-{chosen.tag}{judgement.key}-{side}",
            "conversation_id": conversation_id,
            "user_id": user_id,
            "comparison_id": None if side is None else target,
            "side": side,
            "created_at": at,
            "finished_at": at,
            "state": ReplyState.COMPLETE.value,
            "messages": judgement.messages,
            "prompt_digest": prompt_digest(judgement.messages),
            "text": reply.text,
            "sampling": {} if reply.model is None else {"model": reply.model},
            "policy_version": IMPORTED,
            "arm": IMPORTED,
            "propensity": propensity,
            "source": judgement.source,
        }
        for side, reply in zip(sides, judgement.replies, strict=True)
    ]
    comparison = judgement.is_comparison and {
        "id": target,
        "user_id": user_id,
        "conversation_id": conversation_id,
        "left_reply_id": replies[0]["id"],
        "right_reply_id": replies[1]["id"],
        "propensity": propensity,
        "created_at": at,
        "source": judgement.source,
    }
    return {
        "user": {"id": user_id, "created_at": at, "consent": judgement.consent, "erased_at": None},
        "conversation": {
            "id": conversation_id,
            "user_id": user_id,
            "title": "",
            "created_at": at,
            "updated_at": at,
        },
        "replies": replies,
        "comparison": comparison,
        "vote": {
            "target_kind": _kind(judgement).value,
            "target_id": target,
            "user_id": user_id,
            "revision": 1,
            "withdrawn": False,
            "body_digest": body_digest(_kind(judgement), target, judgement.ballot),
            "quarantined": False,
            "created_at": at,
            **judgement.ballot.values(),
        },
    }
