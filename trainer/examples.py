"""Votes as token ids: what the reward model is fitted to.

A reply that the engine generated keeps the ids that it sampled. Only imported text, which has none, is tokenised
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

from feedback.samples import CorrectionSample, PairSample, SampleSet, ThumbSample
from feedback.schema import Choice
from feedback.splits import Split
from trainer.agreement import PushedPhrase, pushed_phrases, without
from trainer.likelihood import BOTH_BAD, LEFT, RIGHT, TIE
from trainer.rankings import rankings
from trainer.surfaces import FORMAT, LANGUAGE, LENGTH, surfaces
from trainer.tokens import encode_reply, render_prompt

_OUTCOMES = {Choice.LEFT: LEFT, Choice.RIGHT: RIGHT, Choice.TIE: TIE, Choice.BOTH_BAD: BOTH_BAD}


WATCHED_SHARE = 0.1
"""The gate looks for phrases of at most this share of people also where all are learned."""
SURFACES = (LENGTH, LANGUAGE, FORMAT)
"""Of a reply with a thumb."""


@dataclass(frozen=True)
class PairExample:
    prompt: list[int]
    left: list[int]
    right: list[int]
    outcome: int  # likelihood.LEFT, RIGHT, TIE or BOTH_BAD
    user: int  # index of the voter, among those of the same side of the split
    weight: float
    vote_id: int
    ranking: int | None = None  # pairs with the same one are one element of a batch

    @property
    def length(self) -> int:
        return len(self.prompt) + max(len(self.left), len(self.right))


@dataclass(frozen=True)
class ThumbExample:
    prompt: list[int]
    reply: list[int]
    up: float  # 1 up, 0 down, between for a rating
    user: int
    weight: float
    vote_id: int
    reasons: list[str] = field(default_factory=list)  # the tags that came with it
    surface: list[float] = field(default_factory=lambda: [0.0] * len(SURFACES))

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class Demonstration:
    """What somebody wrote in a reply's place."""

    prompt: list[int]
    reply: list[int]
    weight: float


VoteExample = PairExample | ThumbExample


@dataclass(frozen=True)
class Examples:
    train: list[VoteExample]
    held_out: list[VoteExample]
    demonstrations: list[Demonstration]  # to imitate
    held_out_demonstrations: list[Demonstration]
    prompts: list[list[int]]  # distinct prompts that PPO may practise on
    kept_prompts: list[list[int]]  # distinct prompts that only the evaluation sees
    pushed: list[PushedPhrase] = field(default_factory=list)  # phrases that a few people push


def to_examples(
    samples: SampleSet, tokenizer: Any, *, max_tokens: int, kept_prompts: int, seed: int, popular_share: float = 0.0
) -> Examples:
    """Samples as token ids. Prompts longer than the context keep their newest part.

    Corrections become pairs in which the correction is preferred to the reply it corrects, and demonstrations. Those
    that push a phrase which at most `popular_share` of all who vote have written are left out.
    """
    pushed = pushed_phrases(samples, max(popular_share, WATCHED_SHARE))
    few = popular_share * len({sample.user_id for sample in samples})
    samples = without(samples, [phrase for phrase in pushed if phrase.people <= few])
    demonstrations: dict[str, list[Demonstration]] = {Split.TRAIN: [], Split.HELD_OUT: []}
    users: dict[str, dict[str, int]] = {Split.TRAIN: {}, Split.HELD_OUT: {}}
    parts: dict[str, list[VoteExample]] = {Split.TRAIN: [], Split.HELD_OUT: []}
    prompts: dict[str, tuple[bool, list[int]]] = {}
    of = rankings(samples.pairs)
    for sample in samples:
        prompt = sample.prompt_token_ids or render_prompt(tokenizer, sample.messages)
        example = _example(sample, prompt, users, tokenizer, max_tokens)
        if isinstance(sample, PairSample) and isinstance(example, PairExample) and of[sample.vote_id].pairs > 1:
            example = replace(example, ranking=of[sample.vote_id].name)
        held_out = sample.split == Split.HELD_OUT
        parts[sample.split].append(example)
        if isinstance(sample, CorrectionSample) and isinstance(example, PairExample):
            demonstrations[sample.split].append(Demonstration(example.prompt, example.left, example.weight))
        known = prompts.get(sample.prompt_digest)
        prompts[sample.prompt_digest] = (held_out and (known is None or known[0]), example.prompt)
    # The reward model's held-out prompts first, then others by hash, so that the choice does not depend on the log's
    # order.
    ranked = sorted(
        prompts, key=lambda digest: (not prompts[digest][0], sha256(f"{seed}:{digest}".encode()).hexdigest())
    )
    kept = set(ranked[: min(kept_prompts, max(1, len(ranked) // 4))])
    return Examples(
        train=parts[Split.TRAIN],
        held_out=parts[Split.HELD_OUT],
        demonstrations=demonstrations[Split.TRAIN],
        held_out_demonstrations=demonstrations[Split.HELD_OUT],
        prompts=[ids for digest, (_, ids) in prompts.items() if digest not in kept],
        kept_prompts=[prompts[digest][1] for digest in ranked if digest in kept],
        pushed=pushed,
    )


def _example(
    sample: ThumbSample | PairSample | CorrectionSample,
    prompt: list[int],
    users: dict[str, dict[str, int]],
    tokenizer: Any,
    max_tokens: int,
) -> VoteExample:
    # Each side counts its own people: they teach different models.
    own = users[sample.split]
    user = own.setdefault(sample.user_id, len(own))

    def ids(text: str, recorded: list[int] | None) -> list[int]:
        return (recorded or encode_reply(tokenizer, text))[: max_tokens // 2]

    if isinstance(sample, PairSample):
        left, right = ids(sample.left.text, sample.left.token_ids), ids(sample.right.text, sample.right.token_ids)
        prompt = prompt[-(max_tokens - max(len(left), len(right))) :]
        return PairExample(prompt, left, right, _OUTCOMES[Choice(sample.choice)], user, sample.weight, sample.vote_id)
    if isinstance(sample, CorrectionSample):
        left, right = ids(sample.correction, None), ids(sample.text, sample.token_ids)
        prompt = prompt[-(max_tokens - max(len(left), len(right))) :]
        return PairExample(prompt, left, right, LEFT, user, sample.weight, sample.vote_id)
    reply = ids(sample.text, sample.token_ids)
    prompt = prompt[-(max_tokens - len(reply)) :]
    seen = surfaces(sample.text, len(reply))
    return ThumbExample(
        prompt,
        reply,
        sample.label,
        user,
        sample.weight,
        sample.vote_id,
        list(sample.reasons),
        [seen[name] for name in SURFACES],
    )


def to_json(examples: Examples) -> dict[str, Any]:
    def rows(part: Sequence[VoteExample]) -> list[dict[str, Any]]:
        return [{"pair": isinstance(example, PairExample), **asdict(example)} for example in part]

    return {
        "train": rows(examples.train),
        "held_out": rows(examples.held_out),
        "demonstrations": [asdict(each) for each in examples.demonstrations],
        "held_out_demonstrations": [asdict(each) for each in examples.held_out_demonstrations],
        "prompts": examples.prompts,
        "kept_prompts": examples.kept_prompts,
        "pushed": [asdict(each) for each in examples.pushed],
    }


def from_json(body: dict[str, Any]) -> Examples:
    def part(rows: list[dict[str, Any]]) -> list[VoteExample]:
        return [(PairExample if row.pop("pair") else ThumbExample)(**row) for row in rows]

    def shown(rows: list[dict[str, Any]]) -> list[Demonstration]:
        return [Demonstration(**row) for row in rows]

    return Examples(
        train=part(body["train"]),
        held_out=part(body["held_out"]),
        demonstrations=shown(body["demonstrations"]),
        held_out_demonstrations=shown(body["held_out_demonstrations"]),
        prompts=body["prompts"],
        kept_prompts=body["kept_prompts"],
        pushed=[PushedPhrase(tuple(each["words"]), each["people"], each["corrections"]) for each in body["pushed"]],
    )
