"""Votes that one person casts faster than anybody reads. They are read past; nothing is written and no vote is lost.

A burst is more than so many effective votes of one user within a minute. Which votes those are follows from the log
alone, each time it is read: a threshold that is mended gives them back, and so does whoever withdraws them.

Not here: how long the replies take to read, for somebody may have read them all before they vote on the first; many
people at once, of whom nothing in a log tells a crowd that was sent from a crowd that came (decision 0019). Votes that
came in a file have its time and not their own, so they have no pace.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from feedback.schema import Comparison, Reply, Vote
from feedback.statements import table
from feedback.verdicts import effective_vote

WINDOW = timedelta(minutes=1)

_TO_THE_MINUTE = len("2026-01-01 00:00")
_PEOPLE = 500  # that one query names


class Cast(NamedTuple):
    """All of a vote that its pace depends on."""

    user_id: str
    at: datetime
    vote_id: int


@dataclass(frozen=True)
class Burst:
    user_id: str
    began: datetime
    ended: datetime
    vote_ids: tuple[int, ...]


def bursts(votes: Iterable[Cast], most: int) -> list[Burst]:
    """By user, then by time: the longest stretches in which each vote is one of more than `most` within a minute.

    Every user who leaves `WINDOW / most` between two votes has none. Raises ValueError where `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most: must be 1 or more, not {most}")
    return [
        Burst(user_id, own[first].at, own[last].at, tuple(each.vote_id for each in own[first : last + 1]))
        for user_id, group in groupby(sorted(votes), key=lambda each: each.user_id)
        for own in [list(group)]
        for first, last in _stretches([each.at for each in own], most)
    ]


def find_bursts(session: Session, most: int) -> list[Burst]:
    """Those of the log: of effective votes on what was said in the chat. `most` 0: nobody looks, and there are none."""
    return bursts(_of_the_hasty(session, most), most) if most else []


def votes_in(found: Iterable[Burst]) -> frozenset[int]:
    """The ids of their votes."""
    return frozenset(vote_id for burst in found for vote_id in burst.vote_ids)


def _stretches(times: list[datetime], most: int) -> Iterator[tuple[int, int]]:
    """(first, last) of each, as places in `times`, which are in order."""
    begun, last = 0, -1
    for first, (opening, closing) in enumerate(zip(times, times[most:], strict=False)):
        if closing - opening >= WINDOW:
            continue
        if first > last:
            if last >= 0:
                yield begun, last
            begun = first
        last = first + most
    if last >= 0:
        yield begun, last


def _of_the_hasty(session: Session, most: int) -> Iterator[Cast]:
    """The votes of everybody who may have a burst.

    More than `most` within a minute lie in two minutes of the clock, so one of these has more than half of `most`. All
    revisions are counted for that: it costs less than to find those that are in effect, and is never too few.
    """
    vote = table(Vote)
    minute = func.substr(cast(vote.c.created_at, Text), 1, _TO_THE_MINUTE)
    hasty = select(vote.c.user_id).group_by(minute, vote.c.user_id).having(2 * func.count() > most).distinct()
    people = sorted(session.execute(hasty).scalars())
    reply, comparison, counted = table(Reply), table(Comparison), effective_vote
    said = (
        select(counted.c.user_id, counted.c.created_at, counted.c.id)
        .select_from(counted)
        .outerjoin(reply, reply.c.id == counted.c.target_id)
        .outerjoin(comparison, comparison.c.id == counted.c.target_id)
        .where(func.coalesce(reply.c.source, comparison.c.source) == "chat")
    )
    for start in range(0, len(people), _PEOPLE):
        those = said.where(counted.c.user_id.in_(people[start : start + _PEOPLE]))
        for row in session.execute(those, execution_options={"yield_per": _PEOPLE}):
            yield Cast(*row)
