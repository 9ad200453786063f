"""Which samples train and which are held out. Deterministic: the same log gives the same split, with no seed to keep.

A held-out sample should be new to the model in both ways that matter: a user it has not learned from, and a prompt it
has not seen answered. So users and prompts are each hashed to one side:

- a prompt that only one user has (nearly all real ones: a digest covers the whole conversation) goes with its user,
  since nothing about it can leak to another user's side;
- a prompt that several users share has a side of its own. Its sample is held out if user and prompt both are, trains
  if neither is, and is dropped otherwise: training on it would show the model half of the test.

A user never moves between sides as the log grows; a sample can only become dropped, when its prompt becomes shared.

Where that leaves too little (few users, or few prompts that everybody shares), the next weaker split is used: by prompt
alone, then by vote alone. The report always says which: an accuracy measured by vote flatters the model.
"""

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from itertools import compress
from sys import intern
from typing import Any, NamedTuple


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held_out"


class SplitMode(StrEnum):
    USER_AND_PROMPT = "user_and_prompt"
    PROMPT = "prompt"
    VOTE = "vote"
    NONE = "none"  # fewer than two votes: everything trains


class Key(NamedTuple):
    """All that the split of one vote depends on."""

    vote_id: int
    user_id: str
    prompt_digest: str


class VoteKeys:
    """The keys of a whole log, in about 200 bytes each."""

    def __init__(self) -> None:
        self._ids, self._users, self._prompts = array("q"), list[str](), list[str]()
        self._first_voter: dict[str, str] = {}  # of a prompt
        self._shared: set[str] = set()

    def add(self, vote_id: int, user_id: str, prompt_digest: str) -> None:
        user = intern(user_id)
        self._ids.append(vote_id)
        self._users.append(user)
        self._prompts.append(prompt_digest)
        if self._first_voter.setdefault(prompt_digest, user) is not user:
            self._shared.add(prompt_digest)

    def __iter__(self) -> Iterator[Key]:
        return map(Key, self._ids, self._users, self._prompts)

    def votes_of(self) -> Counter[str]:
        """How many each user has."""
        return Counter(self._users)

    def shared_prompts(self) -> frozenset[str]:
        """Those on which two or more users voted."""
        return frozenset(self._shared)

    def on_shared_prompts(self) -> Iterator[Key]:
        return compress(self, map(self._shared.__contains__, self._prompts))


@dataclass(frozen=True)
class SplitReport:
    """What was done, for the run's report. Counts are votes, not samples."""

    mode: SplitMode
    reason: str
    fraction: float
    votes: int
    train: int
    held_out: int
    dropped: int
    users: int
    held_out_users: int
    shared_prompts: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Assign = Callable[[Key], Split | None]


@dataclass(frozen=True)
class Plan:
    """`assign` gives a vote's side, or None for a vote that is dropped; `votes_of` how many each user has."""

    assign: Assign
    report: SplitReport
    votes_of: Mapping[str, int]

    def weights(self, cap: float | None) -> dict[str, float]:
        """What a vote weighs of those users whose votes would weigh more than `cap` together; all others' weigh 1."""
        return {} if cap is None else {user: cap / votes for user, votes in self.votes_of.items() if votes > cap}


def plan_split(keys: VoteKeys, *, fraction: float, min_held_out: int) -> Plan:
    """Chooses the strongest split that leaves enough on both sides.

    Args:
        keys: of all votes.
        fraction: of users, and of shared prompts, that are held out.
        min_held_out: a split that holds out fewer votes is too weak to measure with, if the log allows more: the
            smaller of this number and half of `fraction` of all votes is asked for.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: must be between 0 and 1, not {fraction}")
    users, shared_prompts = keys.votes_of(), keys.shared_prompts()
    votes = users.total()

    def report(mode: SplitMode, reason: str, tally: dict[Split | None, int], held_out_users: int) -> SplitReport:
        return SplitReport(
            mode=mode,
            reason=reason,
            fraction=fraction,
            votes=votes,
            train=tally[Split.TRAIN],
            held_out=tally[Split.HELD_OUT],
            dropped=tally[None],
            users=len(users),
            held_out_users=held_out_users,
            shared_prompts=len(shared_prompts),
        )

    if votes < 2:
        tally = {Split.TRAIN: votes, Split.HELD_OUT: 0, None: 0}
        return Plan(lambda _key: Split.TRAIN, report(SplitMode.NONE, "there are fewer than two votes", tally, 0), users)

    needed = max(1, min(min_held_out, int(fraction * votes / 2)))
    reason = "users and prompts are both new to the model"
    strong: list[tuple[SplitMode, Assign, Callable[[], _Counted]]] = [
        (
            SplitMode.USER_AND_PROMPT,
            _by_user_and_prompt(shared_prompts, fraction),
            lambda: _alone_together(keys, users),
        ),
        (SplitMode.PROMPT, lambda key: _side("prompt", key.prompt_digest, fraction), lambda: _one_each(keys)),
    ]
    for mode, assign, counted in strong:
        tally, held_out_users = _count(counted(), assign)
        if tally[Split.HELD_OUT] >= needed and tally[Split.TRAIN] * 2 >= votes:
            return Plan(assign, report(mode, reason, tally, held_out_users), users)
        reason = (
            f"by {mode.replace('_', ' ')} would hold out {tally[Split.HELD_OUT]} of {votes} votes "
            f"and train on {tally[Split.TRAIN]}; at least {needed} and {(votes + 1) // 2} are needed"
        )
    chosen = frozenset(
        key.vote_id
        for key in heapq.nsmallest(
            max(1, round(fraction * votes)), keys, key=lambda key: (_unit("vote", str(key.vote_id)), key.vote_id)
        )
    )
    by_vote: Assign = lambda key: Split.HELD_OUT if key.vote_id in chosen else Split.TRAIN  # noqa: E731
    tally, held_out_users = _count(_one_each(keys), by_vote)
    return Plan(by_vote, report(SplitMode.VOTE, reason, tally, held_out_users), users)


def _by_user_and_prompt(shared_prompts: frozenset[str], fraction: float) -> Assign:
    of_users = cache(lambda user_id: _side("user", user_id, fraction))  # few, and each of them votes often

    def assign(key: Key) -> Split | None:
        of_user = of_users(key.user_id)
        if key.prompt_digest not in shared_prompts:
            return of_user
        return of_user if of_user is _side("prompt", key.prompt_digest, fraction) else None

    return assign


def _side(kind: str, value: str, fraction: float) -> Split:
    return Split.HELD_OUT if _unit(kind, value) < fraction else Split.TRAIN


def _unit(kind: str, value: str) -> float:
    """A number in [0, 1) that depends on `value` alone; `kind` keeps users, prompts and votes independent."""
    digest = hashlib.sha256(f"kudos split {kind}\x00{value}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


_Counted = Iterable[tuple[Key, int]]
"""A key, and of how many votes it is the side."""


def _one_each(keys: VoteKeys) -> _Counted:
    return ((key, 1) for key in keys)


def _alone_together(keys: VoteKeys, votes_of: Counter[str]) -> _Counted:
    """A user's votes on prompts that nobody else has go together, and nearly all are such: a hash for each user.

    What stands for their prompts is the empty string, which is no prompt's digest.
    """
    shared = list(keys.on_shared_prompts())
    alone = votes_of - Counter(key.user_id for key in shared)
    yield from ((Key(0, user_id, ""), votes) for user_id, votes in alone.items())
    yield from ((key, 1) for key in shared)


def _count(counted: _Counted, assign: Assign) -> tuple[dict[Split | None, int], int]:
    tally: dict[Split | None, int] = {Split.TRAIN: 0, Split.HELD_OUT: 0, None: 0}
    held_out_users: set[str] = set()
    for key, votes in counted:
        split = assign(key)
        tally[split] += votes
        if split is Split.HELD_OUT:
            held_out_users.add(key.user_id)
    return tally, len(held_out_users)
