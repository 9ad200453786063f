"""The effective vote: which revision of each user's mind counts. THE place to read votes from.

Metrics, rollouts, the leaderboard and the trainer all read the view `effective_vote` through this module, so that no
two of them can count differently. Nothing here writes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Column, MetaData, Table, func, select
from sqlalchemy.orm import Session

from feedback.schema import SHADOW, Comparison, Conversation, Reply, TargetKind, User, Vote
from feedback.statements import columns, table

# A MetaData of its own: the view must never be created, or compared, as a table.
effective_vote = Table(
    "effective_vote", MetaData(), *(Column(column.name, column.type) for column in table(Vote).columns)
)

_PAGE = 1_000


def effective_votes(session: Session, after_id: int = 0) -> Iterator[Vote]:
    """The votes that count, oldest first, streamed: memory does not grow with the log.

    The objects are detached. On PostgreSQL with several writers, a lower id can be committed after a higher one; a
    reader that must see each vote exactly once reads all of them, as `feedback.samples` does.
    """
    statement = select(effective_vote).where(effective_vote.c.id > after_id).order_by(effective_vote.c.id)
    for row in session.execute(statement, execution_options={"yield_per": _PAGE}):
        yield Vote(**row._mapping)


@dataclass(frozen=True)
class Counts:
    """What the page, the metrics and `kudos feedback stats` show. `votes` counts effective votes."""

    votes: int
    thumbs_up: int
    thumbs_down: int
    ratings: int
    corrections: int
    harmful: int
    comparisons_decided: int
    quarantined: int
    voters: int
    revisions: int
    last_vote_id: int
    users: int
    conversations: int
    comparisons: int
    choices: dict[str, int] = field(default_factory=dict)
    replies: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_votes(session: Session, after_id: int = 0) -> int:
    """The number of effective votes alone: cheap enough for a page that asks every few seconds."""
    return session.execute(
        select(func.count()).select_from(effective_vote).where(effective_vote.c.id > after_id)
    ).scalar_one()


def counts(session: Session) -> Counts:
    view = effective_vote.c

    def having(condition: Any) -> Any:
        return func.count().filter(condition)

    row = session.execute(
        select(
            func.count().label("votes"),
            having(view.thumb == "up").label("thumbs_up"),
            having(view.thumb == "down").label("thumbs_down"),
            having(view.rating.is_not(None)).label("ratings"),
            having(view.correction.is_not(None)).label("corrections"),
            having(view.harmful).label("harmful"),
            having(view.target_kind == TargetKind.COMPARISON.value).label("comparisons_decided"),
            having(view.quarantined).label("quarantined"),
            func.count(view.user_id.distinct()).label("voters"),
        ).select_from(effective_vote)
    ).one()
    revisions, last_vote_id = session.execute(
        select(func.count(), func.coalesce(func.max(columns(Vote).id), 0)).select_from(table(Vote))
    ).one()

    def grouped(statement: Any) -> dict[str, int]:
        return {str(name): int(number) for name, number in session.execute(statement)}

    return Counts(
        **row._mapping,
        revisions=revisions,
        last_vote_id=last_vote_id,
        users=session.execute(select(func.count()).where(columns(User).erased_at.is_(None))).scalar_one(),
        conversations=_rows(session, Conversation),
        comparisons=_rows(session, Comparison),
        choices=grouped(
            select(view.choice, func.count())
            .where(view.choice.is_not(None))
            .group_by(view.choice)
            .order_by(view.choice)
        ),
        replies=grouped(
            select(columns(Reply).state, func.count())
            .where(columns(Reply).source != SHADOW)
            .group_by(columns(Reply).state)
            .order_by(columns(Reply).state)
        ),
    )


def _rows(session: Session, model: Any) -> int:
    return session.execute(select(func.count()).select_from(table(model))).scalar_one()
