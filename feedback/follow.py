"""The log of votes as it grows, one line for each change of a vote, to be read on from where one stopped.

A vote's every revision is a change: it is `cast`, `changed` or `withdrawn`. Lines come in the order of their `cursor`,
so a file of lines is its own bookmark: `Tail` drops the half line that a killed process leaves and goes on after the
last whole one. No revision is told twice, and none is left out that may leave.

Only votes that may leave are told: of users who agree, not quarantined, on replies that ended well in conversations
that exist. A user of whom something was told, and who then withdraws their consent or is erased, is told as well, in a
line `forget`: whoever keeps these lines is to delete that user's. Users are named by digests, which an erasure leaves
recognisable and which name nobody.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from feedback.errors import BadCursor, StorageBusy
from feedback.samples import ended_well
from feedback.schema import Comparison, Conversation, Reply, TargetKind, User, Vote
from feedback.statements import table
from feedback.store import Store
from feedback.tombstones import tombstone_id

_PAGE = 500  # votes that are held in memory
_VOTE, _USER, _REPLY = table(Vote), table(User), table(Reply)
_CONVERSATION, _COMPARISON = table(Conversation), table(Comparison)
_BEFORE = _VOTE.alias("before")
_TOMBSTONE = tombstone_id("")[: -len(hashlib.sha256().hexdigest())]

Line = dict[str, Any]


def pseudonym(user_id: str) -> str:
    """SHA-256 of the id: stable, so that lines of one user belong together, and what an erasure leaves of them."""
    return tombstone_id(user_id).removeprefix(_TOMBSTONE)


class Follower:
    """Reads on from `cursor`. `told` are the pseudonyms of users of whom lines are already out there."""

    def __init__(self, store: Store, *, consent_default: bool, cursor: int = 0, told: set[str] | None = None) -> None:
        if cursor < 0:
            raise BadCursor(f"the cursor {cursor} is not one: give the `cursor` of the last line that you have")
        self._store = store
        self._consent_default = consent_default
        self.cursor = cursor
        self._told = told

    def news(self) -> Iterator[list[Line]]:
        """What has happened since, a page at a time; the cursor moves on as a page is taken."""
        ceiling = self._ceiling()
        if self._told is None:
            self._told = self._perhaps_told()
        forgotten = self._forgotten()
        if forgotten:
            yield forgotten
        while self.cursor < ceiling:
            with self._store.read() as session:
                page = list(session.execute(_page(self.cursor, ceiling)))
                lines = _lines(session, page, self._consent_default)
            self.cursor = page[-1].id if page else ceiling
            self._told |= {line["user"] for line in lines}
            if lines:
                yield lines

    def _ceiling(self) -> int:
        """The newest vote before which none can still arrive."""
        newest = select(func.coalesce(func.max(_VOTE.c.id), 0))
        with self._store.read() as session:
            seen = int(session.execute(newest).scalar_one())
        if self._store.is_sqlite or seen <= self.cursor:
            return seen  # SQLite has one writer, so votes come in the order of their ids
        with self._store.write(alone=True) as session:  # waits for writers who have taken a lower id already
            return int(session.execute(newest).scalar_one())

    def _perhaps_told(self) -> set[str]:
        """Where the lines before the cursor are not at hand: everybody who voted before it, or who was erased."""
        if not self.cursor:
            return set()
        with self._store.read() as session:
            voters = session.execute(select(_VOTE.c.user_id).where(_VOTE.c.id <= self.cursor).distinct()).scalars()
            told = {pseudonym(user_id) for user_id in voters}
            erased = session.execute(select(_USER.c.id).where(_USER.c.erased_at.is_not(None))).scalars()
            return told | {user_id.removeprefix(_TOMBSTONE) for user_id in erased}

    def _forgotten(self) -> list[Line]:
        if not self._told:
            return []
        refuses = or_(_USER.c.erased_at.is_not(None), ~func.coalesce(_USER.c.consent, self._consent_default))
        with self._store.read() as session:
            rows = list(session.execute(select(_USER.c.id, _USER.c.erased_at).where(refuses)))
        lines = []
        for user_id, erased_at in rows:
            user = user_id.removeprefix(_TOMBSTONE) if erased_at is not None else pseudonym(user_id)
            if user in self._told:
                self._told.discard(user)
                reason = "consent withdrawn" if erased_at is None else "erased"
                lines.append({"cursor": self.cursor, "change": "forget", "user": user, "reason": reason})
        return lines


class Tail:
    """A file of lines that grows. One process at a time; whole lines alone are ever read back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StorageBusy(f"another process follows into {path}: stop it, or choose another file") from None
        self.cursor = 0
        self.told: set[str] = set()
        self._recover(path)

    def _recover(self, path: Path) -> None:
        self._file.seek(0)
        whole = 0
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                break
            try:
                line = json.loads(raw)
                cursor, change, user = int(line["cursor"]), line["change"], line["user"]
            except (ValueError, KeyError, TypeError) as error:
                raise BadCursor(f"{path}:{number}: not a line of `kudos feedback export --follow`") from error
            self.cursor = max(self.cursor, cursor)
            self.told.discard(user) if change == "forget" else self.told.add(user)
            whole += len(raw)
        self._file.truncate(whole)

    def append(self, lines: Sequence[Line]) -> None:
        """On disk when it returns."""
        self._file.write(b"".join(spelled(line) for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Tail":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def spelled(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _page(after: int, ceiling: int) -> Any:
    """Votes with what their line needs of their user and of the revision before."""
    return (
        select(
            *_VOTE.c,
            _USER.c.id.label("known_user"),
            _USER.c.consent,
            _USER.c.erased_at,
            _BEFORE.c.withdrawn.label("before_withdrawn"),
        )
        .select_from(
            _VOTE.outerjoin(_USER, _USER.c.id == _VOTE.c.user_id).outerjoin(
                _BEFORE,
                and_(
                    _BEFORE.c.target_id == _VOTE.c.target_id,
                    _BEFORE.c.user_id == _VOTE.c.user_id,
                    _BEFORE.c.revision == _VOTE.c.revision - 1,
                ),
            )
        )
        .where(_VOTE.c.id > after, _VOTE.c.id <= ceiling)
        .order_by(_VOTE.c.id)
        .limit(_PAGE)
    )


def _lines(session: Session, page: Sequence[Any], consent_default: bool) -> list[Line]:
    agreed = [
        row
        for row in page
        if row.erased_at is None and not row.quarantined and (consent_default if row.consent is None else row.consent)
    ]
    replies = _replies(session, agreed)
    return [_line(row, replies.get(row.target_id, ())) for row in agreed if row.withdrawn or row.target_id in replies]


def _replies(session: Session, votes: Sequence[Any]) -> dict[str, list[Any]]:
    """The replies behind each target, left before right; only of targets whose replies all may leave."""
    of_kind = {kind: [row.target_id for row in votes if row.target_kind == kind.value] for kind in TargetKind}
    found: dict[str, list[Any]] = {}
    for target, wanted in (
        (_REPLY.c.id, of_kind[TargetKind.REPLY]),
        (_REPLY.c.comparison_id, of_kind[TargetKind.COMPARISON]),
    ):
        statement = (
            select(
                target.label("target"),
                *(
                    _REPLY.c[name]
                    for name in ("id", "side", "messages", "prompt_digest", "text", "policy_version", "source")
                ),
                and_(ended_well(_REPLY), _CONVERSATION.c.deleted_at.is_(None)).label("may_leave"),
            )
            .select_from(_REPLY.outerjoin(_CONVERSATION, _CONVERSATION.c.id == _REPLY.c.conversation_id))
            .where(target.in_(wanted))
            .order_by(_REPLY.c.side)
        )
        for row in session.execute(statement) if wanted else ():
            found.setdefault(row.target, []).append(row)
    return {
        target: rows
        for target, rows in found.items()
        # As `samples.same_question`: replies to two system prompts do not answer the same messages.
        if all(row.may_leave for row in rows) and len({row.prompt_digest for row in rows}) == 1
    }


def _line(vote: Any, replies: Sequence[Any]) -> Line:
    first = vote.revision == 1 or vote.before_withdrawn
    change = "withdrawn" if vote.withdrawn else "cast" if first else "changed"
    line = {
        "cursor": vote.id,
        "change": change,
        "user": pseudonym(vote.user_id),
        "target": vote.target_id,
        "revision": vote.revision,
        "at": vote.created_at.isoformat(),
    }
    if vote.withdrawn:
        return line
    said = {name: getattr(vote, name) for name in ("thumb", "rating", "comment", "correction", "choice")}
    return {
        **line,
        **{name: value for name, value in said.items() if value is not None},
        "reasons": vote.reasons,
        "harmful": vote.harmful,
        "source": replies[0].source,
        "prompt": replies[0].messages,
        "replies": [
            {"id": reply.id, "text": reply.text, "policy": reply.policy_version}
            | ({} if reply.side is None else {"side": reply.side})
            for reply in replies
        ],
    }
