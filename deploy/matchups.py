"""Which policies comparisons in chat draw from: rows that are only ever added, of which the newest counts."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from deploy.errors import RolloutRefused
from deploy.policies import base_of, get
from feedback.schema import Matchup


def choose(
    session: Session,
    first: str | None,
    second: str | None,
    actor: str,
    *,
    automatic: bool = False,
    versions: Sequence[str] | None = None,
) -> Matchup:
    """Which two policies comparisons draw from; both None: what serves, against itself.

    `automatic`: pairs of `versions` (None: of what replicas hold anyhow), chosen by what is known of them.
    """
    if automatic and (first is not None or second is not None):
        raise RolloutRefused(
            "a matchup is of two policies, or automatic; to draw from some policies only, name `versions`"
        )
    if versions is not None and (not automatic or len(set(versions)) < 2):
        raise RolloutRefused("an automatic matchup draws from two policies or more; without `versions`, from all held")
    for version in (first, second, *(versions or ())):
        if version is not None:
            get(session, version)
    row = Matchup(
        first_version=first,
        second_version=second,
        actor=actor,
        automatic=automatic,
        versions=None if versions is None else list(dict.fromkeys(versions)),
    )
    session.add(row)
    session.flush()
    return row


def newest(session: Session) -> Matchup | None:
    """The one that counts."""
    return session.exec(select(Matchup).order_by(col(Matchup.id).desc()).limit(1)).first()


def pair_of(session: Session, row: Matchup | None, stable: str, base: str) -> tuple[str, str] | None:
    """A policy on other base weights cannot be compared live, so such a matchup waits."""
    if row is None or (row.first_version is None and row.second_version is None):
        return None
    pair = row.first_version or stable, row.second_version or stable
    return pair if all(base_of(get(session, version)) == base for version in pair) else None


def pool_of(session: Session, row: Matchup | None, serving: Sequence[str], base: str) -> tuple[str, ...]:
    if row is None or not row.automatic:
        return ()
    named = dict.fromkeys(row.versions or (base, *serving))
    return tuple(version for version in named if base_of(get(session, version)) == base)
