"""What is known of a running rollout, counted by user: what every decision starts from.

Values only; `deploy.evidence` reads them from the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHADOW = 0.0
"""The share that names the shadow step: nobody meets the candidate, and each user in it is seen in both arms."""


@dataclass(frozen=True)
class Manner:
    """How one user's replies in one arm and step came, and what they were like: means over replies.

    Times and lengths are logarithms, since what doubles is as bad for a short time as for a long one; None where
    there was no such reply.
    """

    replies: int = 0  # that ended, said something or not
    first_token: float | None = None  # of seconds
    per_token: float | None = None  # of seconds, for each token after the first
    length: float | None = None  # of one more than its tokens
    refused: float | None = None  # share of them


@dataclass(frozen=True)
class Served:
    """One user, in one arm, in one step (named by its share): what they were served by themselves, and said of it."""

    user: str
    candidate: bool
    share: float
    replies: int  # that can be voted on
    up: int = 0
    down: int = 0
    failed: int = 0
    harmful: int = 0
    manner: Manner = Manner()


@dataclass(frozen=True)
class Compared:
    """One user's choices between the two policies, from the candidate's side. `level`: a tie, or both bad."""

    user: str
    won: int
    lost: int
    level: int


@dataclass(frozen=True)
class Evidence:
    candidate: str
    stable: str
    share: float
    last_event_id: int
    minutes: float  # since the last event: a start, an advance, a hold or the end of one
    step_votes: int
    held: str = ""  # by whom and why; empty: by nobody
    served: Sequence[Served] = ()
    compared: Sequence[Compared] = ()

    @property
    def in_shadow(self) -> bool:
        return self.share == SHADOW
