"""What one vote may say, and its limits. Pure: no database here.

A ballot is checked when it is made, so that nothing malformed reaches the writer thread, where it would fail late and
beside other people's votes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from feedback.errors import BadBallot
from feedback.schema import Choice, TargetKind, Thumb

MAX_REASONS = 16
MAX_REASON_CHARS = 64
MAX_COMMENT_CHARS = 4_000
MAX_CORRECTION_CHARS = 32_000
MAX_KEY_CHARS = 200

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """What a user says about one target. Checked when it is made; blank texts count as absent.

    Raises:
        BadBallot: with a message for the user that names the field.
    """

    thumb: str | None = None
    rating: float | None = None
    reasons: Sequence[str] = ()
    comment: str | None = None
    correction: str | None = None
    harmful: bool = False
    choice: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen for everyone else
        put(self, "thumb", None if self.thumb is None else member(Thumb, "thumb", self.thumb))
        put(self, "choice", None if self.choice is None else member(Choice, "choice", self.choice))
        put(self, "rating", _rating(self.rating))
        put(self, "reasons", _reasons(self.reasons))
        put(self, "comment", _words("comment", self.comment, MAX_COMMENT_CHARS))
        put(self, "correction", _words("correction", self.correction, MAX_CORRECTION_CHARS))
        if not isinstance(self.harmful, bool):
            raise BadBallot("harmful: must be true or false")
        given = (self.thumb, self.rating, self.comment, self.correction, self.choice)
        if not (self.harmful or self.reasons or any(value is not None for value in given)):
            raise BadBallot("the vote is empty: give at least one of thumb, rating, reasons, comment, correction, ...")

    def check_for(self, kind: TargetKind) -> None:
        if kind is TargetKind.REPLY and self.choice is not None:
            raise BadBallot("choice: only a comparison takes a choice")
        if kind is TargetKind.COMPARISON:
            if self.choice is None:
                raise BadBallot("choice: a comparison needs one of left, right, tie, both_bad")
            if self.harmful or any(value is not None for value in (self.thumb, self.rating, self.correction)):
                raise BadBallot("a comparison takes choice, reasons and comment; vote on its replies for the rest")

    def values(self) -> dict[str, Any]:
        """The columns of a vote that the user fills."""
        return {
            "thumb": self.thumb,
            "rating": self.rating,
            "reasons": list(self.reasons),
            "comment": self.comment,
            "correction": self.correction,
            "harmful": self.harmful,
            "choice": self.choice,
        }


def member(enum: type[StrEnum], field: str, value: Any) -> str:
    """The enum's value for a word of a user's; BadBallot names the field and the words it takes."""
    try:
        return enum(value).value
    except ValueError:
        raise BadBallot(f"{field}: must be one of {', '.join(enum)}, not {str(value)[:40]!r}") from None


def _rating(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadBallot("rating: must be a number between 0 and 1")
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise BadBallot(f"rating: must be between 0 and 1, not {value}")
    return float(value)


def _words(field: str, value: Any, max_chars: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadBallot(f"{field}: must be a text")
    if len(value) > max_chars:
        raise BadBallot(f"{field}: {len(value)} characters; at most {max_chars} are kept")
    # Neither database stores these, and refusing here beats failing a whole batch there.
    if "\x00" in value or (not value.isascii() and _SURROGATE.search(value)):
        raise BadBallot(f"{field}: holds a NUL character or half of a surrogate pair")
    return value if value.strip() else None


def _reasons(value: Any) -> tuple[str, ...]:
    # Lists first: to ask whether something is a Sequence costs as much as all else that is asked of a vote.
    if not isinstance(value, list | tuple) and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise BadBallot("reasons: must be a list of short texts")
    if len(value) > MAX_REASONS:
        raise BadBallot(f"reasons: {len(value)} given; at most {MAX_REASONS} are kept")
    words = [_words("reasons", reason, MAX_REASON_CHARS) for reason in value]
    if any(word is None for word in words):
        raise BadBallot("reasons: none may be blank")
    return tuple(sorted({word.strip() for word in words if word is not None}))


def check_key(key: str | None) -> None:
    if key is None:
        return
    if _words("idempotency_key", key, MAX_KEY_CHARS) is None:
        raise BadBallot("idempotency_key: must not be blank")
