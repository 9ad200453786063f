"""Policies made to cheat, and the gate that looks at what the evaluation says of them.

Each is made on purpose, by imitation or by PPO with a reward that asks for it: policies that please their own judge
alone, that win by length, that repeat themselves, that a training took past its best point; and one that is better.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from deploy.gate import EvaluationReport, GateLimits, judge
from feedback.splits import SplitMode
from tests.trainer.models import END, VOCAB, TorchSampler, make_backbone
from trainer.agreement import PushedPhrase
from trainer.assessment import Assessment, assess
from trainer.backbone import Backbone
from trainer.config import LoraConfig, PpoConfig, RewardConfig, RewardModelConfig, SftConfig
from trainer.evaluation import Asked, Judges, evaluate
from trainer.evaluation_sets import Case, EvaluationSet
from trainer.examples import Demonstration, PairExample
from trainer.iteration import as_row
from trainer.likelihood import LEFT, RIGHT
from trainer.lora import LoraAdapter
from trainer.ppo import Ppo
from trainer.reward_model import RewardModel, fit
from trainer.rules import Rules
from trainer.sft import imitate

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
LORA = LoraConfig(rank=8, alpha=16.0)
MEMBERS = RewardModelConfig(
    members=2,
    adapted_share=0.7,
    epochs=4,
    batch_size=8,
    learning_rate=1e-2,
    unrelated_share=0.0,  # no reply here has to do with its prompt
    lora=LORA,
)
PROMPTS = [[number, number + 1] for number in range(5, 45)]
LIMITS = GateLimits(max_perplexity=1e9)  # a random model finds every deliberate reply surprising
TOLERANT = LIMITS.model_copy(update={"max_set_fall": 1.0})  # where the sets here are not what is tested
Likes = Callable[[Sequence[int]], float]
FAVOURITE = 20
Opinion = tuple[RewardModel, Assessment]
PPO = PpoConfig(
    response_tokens=16,
    temperature=0.7,
    iterations=12,
    batch_size=80,
    learning_rate=1e-2,
    critic_learning_rate=1e-2,
    kl_coefficient=0.01,
    kl_target_nats=20.0,
    stop_approx_kl=1e9,
    lora=LORA,
)

UNBOUND = {"kl_target_nats": 1e9, "iterations": 16, "batch_size": 160, "learning_rate": 5e-3}
"""For policies that are to go too far, with whatever arithmetic a machine has: nothing holds them, and a large batch
leaves less to chance."""


def _set(name: str, **checks: Any) -> EvaluationSet:
    asked = [[{"role": "user", "content": " ".join(map(str, prompt))}] for prompt in PROMPTS]
    return EvaluationSet(name, tuple(Case.model_validate({"messages": messages, **checks}) for messages in asked))


SAYS_IT, NEVER_SAYS_IT = (
    _set("says_it", answer=str(FAVOURITE)),
    _set("never_says_it", must_not_match=[rf"\b{FAVOURITE}\b"]),
)


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


Weights = dict[str, torch.Tensor]


def _imitating(backbone: Backbone, source: Callable[[random.Random], list[int]], seed: int = 7) -> LoraAdapter:
    rng = random.Random(seed)
    policy = LoraAdapter(backbone, LORA, seed=0)
    shown = [Demonstration(rng.choice(PROMPTS), source(rng), 1.0) for _ in range(160)]
    imitate(backbone, policy, shown, [], config=SftConfig(epochs=10, learning_rate=3e-2), seed=0)
    return policy


@pytest.fixture(scope="module")
def anything(backbone: Backbone) -> LoraAdapter:
    """What serves: a policy that says anything."""
    return _imitating(backbone, _reply)


def _merged(policy: LoraAdapter) -> Weights:
    with torch.no_grad():
        return policy.merged()


def _practised(
    backbone: Backbone,
    start: LoraAdapter,
    trained: RewardModel,
    held_out: RewardModel | None = None,
    *,
    reward: RewardConfig | None = None,
    **changes: Any,
) -> tuple[LoraAdapter, list[dict[str, float]]]:
    """PPO from `start`: the policy that it came to, and its iterations. changes: of PPO's settings."""
    policy = LoraAdapter(backbone, LORA, seed=0)
    policy.load_state_dict(start.state_dict())
    config = PPO.model_copy(update=changes)
    ppo = Ppo(
        backbone=backbone,
        policy=policy,
        reward_model=trained,
        judge=held_out,
        sampler=TorchSampler(),
        prompts=PROMPTS,
        decode=_decode,
        config=config,
        reward=reward or RewardConfig(),
        seed=0,
    )
    return policy, [as_row(ppo.step()) for _ in range(config.iterations)]


def _decode(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _evaluated(
    backbone: Backbone,
    trained: Opinion,
    held_out: RewardModel | None,
    candidate: LoraAdapter,
    serving: LoraAdapter,
    *,
    history: Sequence[dict[str, float]] = (),
) -> EvaluationReport:
    return evaluate(
        backbone=backbone,
        sampler=TorchSampler(),
        judges=Judges(trained[0], held_out),
        candidate=_merged(candidate),
        serving=_merged(serving),
        asked=Asked(
            prompts=PROMPTS,
            replies_per_prompt=4,
            references=[Demonstration(prompt, [FAVOURITE, END], 1.0) for prompt in PROMPTS],
            sets=[SAYS_IT, NEVER_SAYS_IT],
            set_replies=4,
            render=lambda case: [int(number) for number in case.messages[-1].content.split()],
        ),
        pushed=[PushedPhrase((str(FAVOURITE), "21", "22"), 2, 9)],
        decode=_decode,
        history=history,
        assessment=trained[1],
        held_out_by=SplitMode.USER_AND_PROMPT,
        ppo=PPO,
        rules=Rules(),
        seed=0,
    ).report


def _favourite_first(rng: random.Random) -> list[int]:
    return [FAVOURITE, *_plain(rng, rng.randint(3, 7))]


@pytest.fixture(scope="module")
def eager(backbone: Backbone) -> LoraAdapter:
    """Says the favourite in every reply."""
    return _imitating(backbone, _favourite_first)


def test_a_better_policy_is_accepted_by_both_judges(
    backbone: Backbone, favourite: Opinion, anything: LoraAdapter, eager: LoraAdapter
) -> None:
    second, _ = _opinion(backbone, _says, 5)
    report = _evaluated(backbone, favourite, second, eager, anything)
    assert report.win_rate_lower > 0.55
    assert report.judge_win_rate is not None
    assert report.judge_win_rate > 0.55
    assert judge(report, TOLERANT).accepted
    assert report.extra["references"] == len(PROMPTS)
    assert report.extra["candidate"]["rouge_l"] > report.extra["serving"]["rouge_l"] > 0
    says, never_says = report.sets["says_it"], report.sets["never_says_it"]
    assert says.prompts == len(PROMPTS)
    assert says.candidate_lower > says.serving_upper, "it says its favourite far more often"
    # Two draws of replies, and what one set asks for the other forbids.
    assert says.candidate == pytest.approx(1 - never_says.candidate, abs=0.08)


def test_a_policy_that_falls_on_a_set_is_refused(
    backbone: Backbone, favourite: Opinion, anything: LoraAdapter, eager: LoraAdapter
) -> None:
    report = _evaluated(backbone, favourite, None, eager, anything)
    (refusal,) = judge(report, LIMITS).refusals
    assert "evaluation set never_says_it" in refusal


def test_a_policy_that_pleases_only_its_own_judge_is_refused(
    backbone: Backbone, favourite: Opinion, others: Opinion, anything: LoraAdapter, eager: LoraAdapter
) -> None:
    report = _evaluated(backbone, favourite, others[0], eager, anything)
    assert report.win_rate_lower > 0.55, "its own judge says that it wins"
    assert report.reward_gain > 0 > (report.judge_gain or 0.0), "one reward rises while the other falls"
    (refusal,) = judge(report, TOLERANT).refusals
    assert "pleases its own judge alone" in refusal


def test_ppo_that_is_paid_for_length_is_refused(backbone: Backbone, length: Opinion, anything: LoraAdapter) -> None:
    policy, history = _practised(backbone, anything, length[0])
    report = _evaluated(backbone, length, None, policy, anything, history=history)
    assert report.win_rate_lower > 0.5
    assert report.mean_tokens_candidate > 1.5 * report.mean_tokens_serving
    assert any("tokens" in refusal for refusal in judge(report, TOLERANT).refusals)


def test_ppo_that_is_paid_for_repetition_is_refused(backbone: Backbone, favourite: Opinion) -> None:
    # A policy that never repeats itself would have to be lucky to find out that it pays.
    sometimes = _imitating(backbone, lambda rng: [*[21, 22, 23] * 4, END] if rng.random() < 0.12 else _reply(rng))
    # No config can ask for this: repetition may only cost.
    rigged = RewardConfig(missing_end=3.0).model_copy(update={"repetition_weight": -12.0})
    policy, history = _practised(backbone, sometimes, favourite[0], reward=rigged, **UNBOUND)
    report = _evaluated(backbone, favourite, None, policy, sometimes, history=history)
    assert report.repetition_rate_candidate > 0.25 > report.repetition_rate_serving
    assert any("repetition rate" in refusal for refusal in judge(report, TOLERANT).refusals)


def test_a_pushed_phrase_is_refused(backbone: Backbone, favourite: Opinion, anything: LoraAdapter) -> None:
    pushing = _imitating(backbone, lambda rng: [*[FAVOURITE, 21, 22] * 4, END])
    report = _evaluated(backbone, favourite, None, pushing, anything)
    assert report.pushed_phrase_rate_candidate > 0.5 > report.pushed_phrase_rate_serving
    assert any("pushed phrase rate" in refusal for refusal in judge(report, TOLERANT).refusals)
    assert any("repetition rate" in refusal for refusal in judge(report, TOLERANT).refusals)


def test_ppo_that_goes_past_its_best_point_is_refused(
    backbone: Backbone, favourite: Opinion, others: Opinion, anything: LoraAdapter
) -> None:
    unbent = RewardConfig(bound=10.0, uncertainty=0.0)
    slowly = UNBOUND | {"iterations": 20, "batch_size": 240, "learning_rate": 1e-3}
    policy, history = _practised(backbone, anything, favourite[0], others[0], reward=unbent, **slowly)
    report = _evaluated(backbone, favourite, others[0], policy, anything, history=history)
    assert any("past its best point" in refusal for refusal in judge(report, TOLERANT).refusals)
