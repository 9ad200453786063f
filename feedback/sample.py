"""What a training sample is, by kind. Plain data: how votes become samples is in `feedback.samples`.

What a sample is worth to a model is not decided here: a `both_bad` stays a `both_bad`, and a flag stays a flag.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from feedback.bursts import Burst
from feedback.schema import Thumb
from feedback.splits import Split, SplitReport


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What all samples have. `weight` is below 1 for a user with more votes than one user may weigh."""

    vote_id: int
    user_id: str
    prompt_digest: str
    split: Split
    weight: float
    messages: list[dict[str, Any]]
    prompt_token_ids: list[int] | None
    reasons: list[str]
    source: str  # chat, or the name of an import
    propensity: float

    @property
    def kind(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ThumbSample(Sample):
    """One user's verdict on one reply: a thumb, a rating, a flag as harmful, or several of these."""

    reply_id: str
    text: str
    token_ids: list[int] | None
    policy_version: str
    arm: str
    thumb: Thumb | None
    rating: float | None  # 0..1
    harmful: bool

    @property
    def kind(self) -> str:
        return "rating" if self.thumb is None and self.rating is not None else "thumb"

    @property
    def label(self) -> float:
        """0..1: the thumb if there is one, else the rating; a flag alone is a 0."""
        if self.thumb is not None:
            return 1.0 if self.thumb is Thumb.UP else 0.0
        return 0.0 if self.rating is None else self.rating


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two replies of a pair."""

    reply_id: str
    text: str
    token_ids: list[int] | None
    policy_version: str


@dataclass(frozen=True, kw_only=True)
class PairSample(Sample):
    """A choice between two replies to one prompt: left, right, tie or both_bad. Sides are as the user saw them."""

    left: Side
    right: Side
    choice: str

    @property
    def kind(self) -> str:
        return "pair"


@dataclass(frozen=True, kw_only=True)
class CorrectionSample(Sample):
    """The reply as the user would have written it, beside the one that was given."""

    reply_id: str
    text: str
    token_ids: list[int] | None
    policy_version: str
    correction: str

    @property
    def kind(self) -> str:
        return "correction"


@dataclass(frozen=True)
class SampleSet:
    split: SplitReport
    last_vote_id: int  # the newest effective vote in the log, used or not
    bursts: list[Burst] = field(default_factory=list)  # whose votes were left out
    thumbs: list[ThumbSample] = field(default_factory=list)
    pairs: list[PairSample] = field(default_factory=list)
    corrections: list[CorrectionSample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.thumbs) + len(self.pairs) + len(self.corrections)

    def __iter__(self) -> Iterator[ThumbSample | PairSample | CorrectionSample]:
        yield from self.thumbs
        yield from self.pairs
        yield from self.corrections

    @property
    def votes(self) -> int:
        return len({sample.vote_id for sample in self})

    def part(self, split: Split | str) -> "SampleSet":
        """Only the samples of one side."""
        return replace(
            self,
            thumbs=[sample for sample in self.thumbs if sample.split == split],
            pairs=[sample for sample in self.pairs if sample.split == split],
            corrections=[sample for sample in self.corrections if sample.split == split],
        )
