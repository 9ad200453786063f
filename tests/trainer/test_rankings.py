"""Pairs that are one ranking: they are found by what they share, weigh what a ranking says, and are read once."""

import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from feedback.sample import PairSample, SampleSet, Side
from feedback.splits import Split, SplitMode, SplitReport
from tests.trainer.models import END, make_backbone, make_tokenizer
from tests.trainer.test_reward_model import CONFIG, _prompt, _reply
from trainer import reward_model
from trainer.assessment import assess
from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.examples import PairExample, VoteExample, to_examples
from trainer.likelihood import LEFT, RIGHT
from trainer.rankings import rankings, together
from trainer.reward_model import RewardModel, fit

REPORT = SplitReport(SplitMode.VOTE, "a test", *[0] * 8)


def pair(
    vote: int, left: str, right: str, *, user: str = "ada", prompt: str = "p", split: Split = Split.TRAIN
) -> PairSample:
    return PairSample(
        vote_id=vote,
        user_id=user,
        prompt_digest=prompt,
        split=split,
        weight=1.0,
        messages=[{"role": "user", "content": f"hello {prompt}"}],
        prompt_token_ids=None,
        reasons=[],
        source="arena",
        propensity=0.5,
        left=Side(reply_id=f"l{vote}", text=left, token_ids=None, policy_version="v"),
        right=Side(reply_id=f"r{vote}", text=right, token_ids=None, policy_version="v"),
        choice="left",
    )


def ranking(first_vote: int, texts: list[str], **changes: str) -> list[PairSample]:
    """All pairs of a ranking, the better one left."""
    chosen = combinations(texts, 2)
    return [pair(first_vote + place, *sides, **changes) for place, sides in enumerate(chosen)]  # type: ignore[arg-type]


def test_pairs_of_one_person_on_one_prompt_that_share_replies_belong_together() -> None:
    four = ranking(10, ["a", "b", "c", "d"])
    alone = pair(1, "x", "y")
    others = [pair(2, "a", "b", user="bob"), pair(3, "a", "b", prompt="q")]
    of = rankings([alone, *others, *reversed(four)])
    assert {of[each.vote_id].name for each in four} == {10}
    assert (of[10].replies, of[10].pairs, of[10].weight) == (4, 6, 0.5)
    for vote in (1, 2, 3):
        assert (of[vote].name, of[vote].pairs, of[vote].weight) == (vote, 1, 1.0)


def test_a_ranking_weighs_what_the_choices_between_neighbours_would() -> None:
    for size in range(2, 8):
        part = together(SampleSet(REPORT, 99, pairs=ranking(1, [chr(97 + place) for place in range(size)])))
        assert sum(each.weight for each in part.pairs) == pytest.approx(size - 1)
    chain = together(SampleSet(REPORT, 99, pairs=[pair(1, "a", "b"), pair(2, "b", "c")]))
    assert [each.weight for each in chain.pairs] == [1.0, 1.0], "nothing is said twice"
    twice = together(SampleSet(REPORT, 99, pairs=[pair(1, "a", "b"), pair(2, "b", "a")]))
    assert [each.weight for each in twice.pairs] == [0.5, 0.5]


def test_a_ranking_is_learned_or_asked_about_and_never_both() -> None:
    split = [pair(5, "a", "b", split=Split.HELD_OUT), pair(6, "b", "c"), pair(7, "a", "c"), pair(8, "x", "y")]
    sides = {each.vote_id: each.split for each in together(SampleSet(REPORT, 99, pairs=split)).pairs}
    assert sides == {5: Split.HELD_OUT, 6: Split.HELD_OUT, 7: Split.HELD_OUT, 8: Split.TRAIN}


def test_examples_know_their_ranking() -> None:
    samples = SampleSet(REPORT, 99, pairs=[*ranking(1, ["a", "b", "c"]), pair(7, "x", "y")])
    found = to_examples(samples, make_tokenizer(), max_tokens=64, kept_prompts=8, seed=0)
    assert [each.ranking for each in found.train if isinstance(each, PairExample)] == [1, 1, 1, None]


@pytest.fixture(scope="module")
def shared_backbone() -> Backbone:
    torch.set_num_threads(1)
    return make_backbone(num_hidden_layers=2)


def _ranked(count: int, seed: int, size: int = 4) -> list[VoteExample]:
    """Rankings by how often the liked token is said, all pairs of each, sides at random."""
    rng = random.Random(seed)
    found: list[VoteExample] = []
    for number in range(count):
        prompt = _prompt(rng)
        replies = [
            [7] * said + [reply for reply in _reply(rng, False) if reply != END][:3] + [END] for said in range(size)
        ]
        for worse, better in combinations(range(size), 2):
            left_is_better = rng.random() < 0.5
            left, right = (better, worse) if left_is_better else (worse, better)
            found.append(
                PairExample(
                    prompt, replies[left], replies[right], LEFT if left_is_better else RIGHT, number % 5,
                    2 / size, len(found), ranking=number,
                )
            )  # fmt: skip
    return found


@pytest.mark.usefixtures("one_thread")
def test_the_pairs_of_a_ranking_share_a_batch_in_which_each_reply_is_read_once(
    shared_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    of = Batch.of

    def counting(prompts: list[list[int]], replies: list[list[int]], device: torch.device) -> Batch:
        made = of(prompts, replies, device)
        read.append(len(made))
        assert made.prompts == len({tuple(prompt) for prompt in prompts}), "a prompt is read once too"
        return made

    monkeypatch.setattr(reward_model.Batch, "of", counting)
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 8, "unrelated_share": 0.0})
    steps: list[object] = []
    fit(shared_backbone, _ranked(16, seed=1), config, 0, steps.append)
    assert len(steps) == 2, "sixteen rankings, and not ninety-six pairs, are two batches of eight"
    assert read == [8 * 4, 8 * 4]


@pytest.mark.usefixtures("one_thread")
def test_rankings_teach_it_and_the_doubt_counts_rankings(shared_backbone: Backbone) -> None:
    model, votes = fit(shared_backbone, _ranked(80, seed=2), CONFIG.model_copy(update={"batch_size": 8}), 0)
    found = assess(model, votes, _ranked(40, seed=3))
    assert found.pairs == 240
    assert found.accuracy > 0.9
    apart = [replace(each, ranking=None) for each in _ranked(40, seed=3) if isinstance(each, PairExample)]
    naive = assess(model, votes, apart)
    assert naive.accuracy == found.accuracy
    assert found.lower < naive.lower, "40 rankings of four say what 120 choices say, and not 240"


@pytest.mark.usefixtures("one_thread")
def test_a_pair_alone_is_read_as_before(shared_backbone: Backbone) -> None:
    """Rankings of two are plain pairs: the same batches and the same model, bit for bit."""
    plain = [each for each in _ranked(20, seed=4, size=2) if isinstance(each, PairExample)]
    alone = [PairExample(e.prompt, e.left, e.right, e.outcome, e.user, e.weight, e.vote_id) for e in plain]
    config = CONFIG.model_copy(update={"epochs": 1})
    first, second = (fit(shared_backbone, each, config, 3)[0] for each in (plain, alone))
    assert isinstance(first, RewardModel)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
