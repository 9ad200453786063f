"""Policies made to cheat, and the gate that looks at what the evaluation says of them.

Each is made on purpose, by imitation: one that says what only its own judge likes, one that wins by length, one that
repeats itself, and one that is simply better.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch

from deploy.gate import EvaluationReport, GateLimits, judge
from tests.trainer.models import END, VOCAB, TorchSampler, make_backbone
from trainer.agreement import PushedPhrase
from trainer.assessment import Assessment, assess
from trainer.backbone import Backbone
from trainer.config import LoraConfig, PpoConfig, RewardConfig, RewardModelConfig, SftConfig
from trainer.evaluation import Judges, evaluate
from trainer.examples import Demonstration, PairExample
from trainer.likelihood import LEFT, RIGHT
from trainer.lora import LoraAdapter
from trainer.reward_model import RewardModel, fit
from trainer.sft import imitate

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
LORA = LoraConfig(rank=8, alpha=16.0)
MEMBERS = RewardModelConfig(members=2, adapted_share=0.7, epochs=4, batch_size=8, learning_rate=1e-2, lora=LORA)
PROMPTS = [[number, number + 1] for number in range(5, 45)]
LIMITS = GateLimits(max_perplexity=1e9)  # a random model finds every deliberate reply surprising
Likes = Callable[[Sequence[int]], float]
FAVOURITE = 20


def _says(reply: Sequence[int]) -> float:
    return float(FAVOURITE in reply)


def _plain(rng: random.Random, length: int) -> list[int]:
    return [*(rng.randrange(21, VOCAB) for _ in range(length)), END]


def _reply(rng: random.Random, longest: int = 9) -> list[int]:
    reply = _plain(rng, rng.randint(3, longest))
    if rng.random() < 0.5:
        reply[rng.randrange(len(reply) - 1)] = FAVOURITE
    return reply


def _votes(likes: Likes, seed: int, longest: int, count: int = 120) -> list[PairExample]:
    rng = random.Random(seed)
    votes: list[PairExample] = []
    while len(votes) < count:
        left, right = _reply(rng, longest), _reply(rng, longest)
        if likes(left) != likes(right):
            outcome = LEFT if likes(left) > likes(right) else RIGHT
            votes.append(PairExample(rng.choice(PROMPTS), left, right, outcome, 0, 1.0, len(votes)))
    return votes


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.set_num_threads(1)
    return make_backbone(num_hidden_layers=3)


def _opinion(
    backbone: Backbone, likes: Likes, seed: int, longest: int = 9, count: int = 120
) -> tuple[RewardModel, Assessment]:
    model, votes = fit(backbone, _votes(likes, seed, longest, count), MEMBERS, seed)
    return model, assess(model, votes, _votes(likes, seed + 100, longest))


@pytest.fixture(scope="module")
def favourite(backbone: Backbone) -> tuple[RewardModel, Assessment]:
    """Of people who like the favourite token."""
    return _opinion(backbone, _says, 1)


@pytest.fixture(scope="module")
def others(backbone: Backbone) -> tuple[RewardModel, Assessment]:
    """Of people who dislike it."""
    return _opinion(backbone, lambda reply: -_says(reply), 2)


@pytest.fixture(scope="module")
def length(backbone: Backbone) -> tuple[RewardModel, Assessment]:
    """Of people who like whatever is longer."""
    return _opinion(backbone, len, 3, longest=14, count=720)


def _evaluated(
    backbone: Backbone,
    trained: tuple[RewardModel, Assessment],
    held_out: RewardModel | None,
    says: Callable[[random.Random], list[int]],
) -> EvaluationReport:
    """A policy that imitates `says`, against one that says anything."""
    rng = random.Random(7)

    def imitating(source: Callable[[random.Random], list[int]]) -> dict[str, torch.Tensor]:
        policy = LoraAdapter(backbone, LORA, seed=0)
        shown = [Demonstration(rng.choice(PROMPTS), source(rng), 1.0) for _ in range(160)]
        imitate(backbone, policy, shown, [], config=SftConfig(epochs=10, learning_rate=3e-2), seed=0)
        with torch.no_grad():
            return policy.merged()

    return evaluate(
        backbone=backbone,
        sampler=TorchSampler(),
        judges=Judges(trained[0], held_out),
        candidate=imitating(says),
        serving=imitating(_reply),
        prompts=PROMPTS,
        references=[Demonstration(prompt, [FAVOURITE, END], 1.0) for prompt in PROMPTS],
        pushed=[PushedPhrase((str(FAVOURITE), "21", "22"), 2, 9)],
        replies_per_prompt=4,
        decode=lambda ids: " ".join(map(str, ids)),
        assessment=trained[1],
        ppo=PpoConfig(response_tokens=16, temperature=0.7),
        reward=RewardConfig(),
        seed=0,
    ).report


def _favourite_first(rng: random.Random) -> list[int]:
    return [FAVOURITE, *_plain(rng, rng.randint(3, 7))]


Opinion = tuple[RewardModel, Assessment]


def test_a_better_policy_is_accepted_by_both_judges(backbone: Backbone, favourite: Opinion) -> None:
    second, _ = _opinion(backbone, _says, 5)
    report = _evaluated(backbone, favourite, second, _favourite_first)
    assert report.win_rate_lower > 0.55
    assert report.judge_win_rate is not None
    assert report.judge_win_rate > 0.55
    assert judge(report, LIMITS).accepted
    assert report.extra["references"] == len(PROMPTS)
    assert report.extra["candidate"]["rouge_l"] > report.extra["serving"]["rouge_l"] > 0


def test_a_policy_that_pleases_only_its_own_judge_is_refused(
    backbone: Backbone, favourite: Opinion, others: Opinion
) -> None:
    report = _evaluated(backbone, favourite, others[0], _favourite_first)
    assert report.win_rate_lower > 0.55, "its own judge says that it wins"
    assert report.reward_gain > 0 > (report.judge_gain or 0.0), "one reward rises while the other falls"
    (refusal,) = judge(report, LIMITS).refusals
    assert "pleases its own judge alone" in refusal


def test_a_policy_that_wins_by_length_alone_is_refused(backbone: Backbone, length: Opinion) -> None:
    report = _evaluated(backbone, length, None, lambda rng: _plain(rng, 13))
    assert report.win_rate_lower > 0.5
    assert report.mean_tokens_candidate > 1.5 * report.mean_tokens_serving
    assert any("tokens" in refusal for refusal in judge(report, LIMITS).refusals)


def test_a_policy_that_repeats_itself_is_refused(backbone: Backbone, favourite: Opinion) -> None:
    report = _evaluated(backbone, favourite, None, lambda rng: [*[FAVOURITE, 21, 22] * 4, END])
    assert report.repetition_rate_candidate > 0.5 > report.repetition_rate_serving
    assert report.pushed_phrase_rate_candidate > 0.5 > report.pushed_phrase_rate_serving
    assert any("pushed phrase rate" in refusal for refusal in judge(report, LIMITS).refusals)
    assert any("repetition rate" in refusal for refusal in judge(report, LIMITS).refusals)
