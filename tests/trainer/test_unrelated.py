"""Replies to other prompts teach what votes do not tell: that a reply should be to the point."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from tests.trainer.models import END, make_backbone
from tests.trainer.test_reward_model import CONFIG
from trainer.backbone import Backbone
from trainer.examples import PairExample, ThumbExample, VoteExample
from trainer.likelihood import BOTH_BAD, LEFT, RIGHT, TIE
from trainer.reward_model import fit
from trainer.unrelated import Unrelated

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = 1.0


def _votes(count: int, seed: int = 0) -> list[VoteExample]:
    """Few prompts, so that several votes share one."""
    rng = random.Random(seed)

    def reply() -> list[int]:
        return [rng.randrange(10, 20) for _ in range(3)] + [END]

    found: list[VoteExample] = []
    for number in range(count):
        prompt = [rng.randrange(5)]
        if number % 3:
            outcome = rng.choice([LEFT, RIGHT, TIE, BOTH_BAD])
            found.append(PairExample(prompt, reply(), reply(), outcome, 0, 1.0, number))
        else:
            found.append(ThumbExample(prompt, reply(), float(rng.random() < 0.5), 0, 1.0, number))
    return found


def _liked(votes: list[VoteExample]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for each in votes:
        if isinstance(each, ThumbExample):
            good = [each.reply] if each.up else []
        else:
            left, right = [each.left], [each.right]
            good = {LEFT: left, RIGHT: right, TIE: left + right, BOTH_BAD: []}[each.outcome]
        yield from ((tuple(each.prompt), tuple(reply)) for reply in good)


def test_a_prompts_own_liked_reply_stands_against_one_that_was_liked_elsewhere_and_never_given_here() -> None:
    votes = _votes(300)
    contrasts, liked = Unrelated(votes, ALL, 0), set(_liked(votes))
    shown = [(v.prompt, [v.reply] if isinstance(v, ThumbExample) else [v.left, v.right]) for v in votes]
    given = {(tuple(prompt), tuple(reply)) for prompt, replies in shown for reply in replies}
    drawn = 0
    for vote in votes:
        found, prompt = contrasts.draw(vote), tuple(vote.prompt)
        if found is None:
            continue
        drawn += 1
        assert (prompt, tuple(found.own)) in liked
        assert (prompt, tuple(found.unrelated)) not in given
        assert any(to != prompt and reply == tuple(found.unrelated) for to, reply in liked)
    assert drawn > 150


def test_the_same_seed_draws_the_same_and_so_many_as_asked() -> None:
    votes = [ThumbExample([n % 7], [n, END], 1.0, 0, 1.0, n) for n in range(10, 1010)]
    first, again, other = (
        [contrasts.draw(v) for v in votes] for contrasts in (Unrelated(votes, 0.5, s) for s in (1, 1, 2))
    )
    assert first == again != other
    assert sum(found is not None for found in first) == pytest.approx(500, abs=60)
    none = Unrelated(votes, 0.0, 1)
    assert not any(none.draw(vote) for vote in votes)


def test_one_prompt_alone_has_no_unrelated_replies_and_a_vote_without_weight_gives_none() -> None:
    alone = [ThumbExample([3], [n, END], 1.0, 0, 1.0, n) for n in range(10, 40)]
    assert not any(Unrelated(alone, ALL, 0).draw(vote) for vote in alone)
    silenced = [ThumbExample([4], [n, END], 1.0, 0, 0.0, n) for n in range(10, 40)]
    contrasts = Unrelated(alone + silenced, ALL, 0)
    assert not any(contrasts.draw(vote) for vote in alone + silenced)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone(num_hidden_layers=2)


def test_it_learns_from_them_that_a_reply_should_be_to_the_point(backbone: Backbone) -> None:
    """All replies that people saw are the frozen model's own, so that votes, on another matter, cannot teach it."""
    rng = random.Random(0)

    def asked() -> tuple[list[int], list[int]]:
        prompt = [rng.randrange(10, 48) for _ in range(3)]
        return prompt, _greedy(backbone, prompt)

    votes: list[VoteExample] = []
    for number in range(192):
        prompt, reply = asked()
        votes.append(ThumbExample(prompt, reply, float(number % 4 > 0), 0, 1.0, number))
    fresh = [asked() for _ in range(60)]
    prompts, replies = [p for p, _ in fresh], [r for _, r in fresh]
    config = CONFIG.model_copy(update={"epochs": 3, "batch_size": 16})

    def wins(share: float) -> float:
        model, _ = fit(backbone, votes, config.model_copy(update={"unrelated_share": share}), 0)
        own, unrelated = (model.score(prompts, each).mean(0) for each in (replies, replies[1:] + replies[:1]))
        return float((own > unrelated).float().mean())

    assert wins(0.5) > 0.9
    assert wins(0.0) < 0.6


@torch.no_grad()
def _greedy(backbone: Backbone, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(5):
        ids.append(int(backbone.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return [*ids[len(prompt) :], END]
