"""The PPO loop on a random model: it learns, counts its steps, stops where it must, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.models import TorchSampler, all_logits, make_backbone
from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.checkpoint import RunFolder
from trainer.config import LoraConfig, PpoConfig, RewardConfig, RewardModelConfig
from trainer.errors import OtherCheckpoint, SamplerMismatch
from trainer.iteration import Iteration, as_row
from trainer.lora import LoraAdapter
from trainer.losses import adapt_kl_coefficient
from trainer.ppo import Ppo
from trainer.reward_model import RewardModel
from trainer.rules import Rules
from trainer.sampler import Rollout
from trainer.trainable import FullWeights

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [[number, number + 1] for number in range(10, 26)]
LORA = LoraConfig(rank=4, alpha=8.0)
CONFIG = PpoConfig(
    iterations=8,
    batch_size=16,
    minibatches=2,
    epochs=2,
    microbatch_tokens=256,
    response_tokens=6,
    temperature=0.9,
    learning_rate=1e-2,
    critic_learning_rate=1e-2,
    kl_coefficient=0.01,
    stop_approx_kl=1e9,
    lora=LORA,
)
SECONDS = {"rollout_seconds", "score_seconds", "update_seconds", "tokens_per_second"}


def make_ppo(
    backbone: Backbone,
    *,
    sampler: TorchSampler | None = None,
    reward: RewardConfig | None = None,
    reward_model: RewardModel | None = None,
    **changes: Any,
) -> Ppo:
    if reward_model is None:
        members = RewardModelConfig(members=2, adapted_share=0.5, lora=LORA)
        reward_model = RewardModel(backbone, members, seed=5)
        with torch.no_grad():
            for member in reward_model.members:
                member.head.zero_()  # type: ignore[union-attr, operator]
    first = backbone.first_of(changes.get("adapted_share", 1.0))
    full = changes.get("method") == "full"
    return Ppo(
        backbone=backbone,
        policy=FullWeights(backbone) if full else LoraAdapter(backbone, LORA, 1, first),
        reward_model=reward_model,
        sampler=sampler or TorchSampler(),
        prompts=PROMPTS,
        decode=lambda ids: " ".join(map(str, ids)),
        config=PpoConfig.model_validate(CONFIG.model_dump() | changes),
        reward=reward or RewardConfig(),
        seed=3,
    )


@pytest.fixture
def backbone(one_thread: None) -> Backbone:
    return make_backbone(num_hidden_layers=2)


def test_the_policy_learns_to_earn_a_trivial_reward(backbone: Backbone) -> None:
    """The only thing that pays is to end: a reply without an end costs 1, whatever it says."""
    ppo = make_ppo(backbone, batch_size=64, iterations=10, learning_rate=2e-2, kl_coefficient=0.0)
    frozen = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    opinions = {name: tensor.clone() for name, tensor in ppo.reward_model.state_dict().items()}
    history = [ppo.step() for _ in range(10)]
    assert history[0].ended < 0.6
    assert history[-1].ended > 0.9
    assert history[-1].reward > history[0].reward + 0.3
    assert history[-1].kl_nats > history[0].kl_nats == pytest.approx(0.0, abs=1e-4)
    assert all(torch.equal(frozen[name], tensor) for name, tensor in backbone.model.state_dict().items())
    assert all(torch.equal(opinions[name], tensor) for name, tensor in ppo.reward_model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "rloo", "replies_per_prompt": 4},
        {"method": "full", "learning_rate": 1e-2, "critic_learning_rate": 1e-2},
        {"algorithm": "rloo", "replies_per_prompt": 4, "method": "full", "learning_rate": 1e-2},
        {"replies_per_prompt": 2},
        {"critic": "head"},
        {"critic": "head", "adapted_share": 0.5, "learning_rate": 4e-2},
        {"adapted_share": 0.5, "learning_rate": 4e-2},
    ],
    ids=["rloo", "full", "full rloo", "two replies", "head", "head and upper layers", "upper layers"],
)
def test_other_algorithms_and_methods_learn_it_too(backbone: Backbone, changes: dict[str, Any]) -> None:
    ppo = make_ppo(
        backbone, **{"batch_size": 64, "iterations": 10, "learning_rate": 2e-2, "kl_coefficient": 0.0} | changes
    )
    history = [ppo.step() for _ in range(10)]
    assert history[0].ended < 0.6
    assert history[-1].ended > 0.85
    assert history[-1].kl_nats > history[0].kl_nats == pytest.approx(0.0, abs=1e-4)
    assert (ppo.critic is None) == (changes.get("algorithm") == "rloo")


@torch.no_grad()
def test_consistency_compares_a_prompt_with_the_next_ones(backbone: Backbone) -> None:
    ppo = make_ppo(backbone, reward=RewardConfig(consistency_weight=2.0, coherence_weight=0.5))
    ppo.sampler.update(backbone, {})
    rollouts = ppo.sampler.sample(PROMPTS[:3], max_tokens=6, temperature=0.9, seed=0)
    terms = ppo.appraise(rollouts).reward.terms

    def fluency(prompt: list[int], reply: list[int]) -> float:
        table = torch.log_softmax(all_logits(backbone, [prompt + reply]) / 0.9, -1)
        said = [float(table[len(prompt) - 1 + t, token]) for t, token in enumerate(reply)]
        return sum(said) / len(said)

    for row, rollout in enumerate(rollouts):
        own, other = (fluency(rollouts[at % 3].prompt, rollout.reply) for at in (row, row + 1))
        assert terms["coherence"][row].item() == pytest.approx(0.5 * own, abs=1e-4)
        assert terms["consistency"][row].item() == pytest.approx(2.0 * (own - other), abs=1e-4)


def test_the_second_judge_is_told_and_never_learned_from(backbone: Backbone) -> None:
    alone, judged = make_ppo(backbone), make_ppo(backbone)
    judged.judge = RewardModel(backbone, RewardModelConfig(members=2, adapted_share=0.5, lora=LORA), seed=9)
    rows = [[as_row(ppo.step()) for _ in range(3)] for ppo in (alone, judged)]
    assert "judge_reward" not in rows[0][0]
    assert all(abs(row["judge_reward"]) > 1e-6 for row in rows[1])
    for name, tensor in alone.policy.state_dict().items():
        assert torch.equal(judged.policy.state_dict()[name], tensor), name
    rollouts = judged.sampler.sample(PROMPTS[:4], max_tokens=6, temperature=0.9, seed=0)
    opinion = judged.judge.score([r.prompt for r in rollouts], [r.reply for r in rollouts]).mean(0)
    torch.testing.assert_close(judged.appraise(rollouts).judge_B, opinion, rtol=1e-4, atol=1e-4)


def test_each_term_of_the_reward_has_its_curve(backbone: Backbone) -> None:
    row = as_row(make_ppo(backbone, reward=RewardConfig(length_weight=0.1)).step())
    assert {name for name in row if name.startswith("term/")} == {
        "term/votes", "term/uncertainty", "term/repetition", "term/rules", "term/length",
    }  # fmt: skip
    assert row["term/length"] == pytest.approx(0.1 * row["reply_tokens"])


def test_replies_to_one_prompt_stay_together(backbone: Backbone) -> None:
    """Minibatches are drawn from prompts, and an advantage compares neighbours."""
    ppo = make_ppo(backbone, algorithm="rloo", replies_per_prompt=4, batch_size=16)
    ppo.sampler.update(backbone, {})
    rollouts = ppo.sampler.sample([p for p in PROMPTS[:4] for _ in range(4)], max_tokens=6, temperature=0.9, seed=0)
    experience = ppo.appraise(rollouts)
    assert experience.batch.prompts == 4
    advantages, _ = ppo._advantages(experience)
    rewards = experience.reward.total_B - ppo.kl_coefficient * experience.kl_nats_B
    for prompt in range(4):
        own = rewards[4 * prompt : 4 * prompt + 4]
        expected = own - (own.sum() - own) / 3
        torch.testing.assert_close(advantages[4 * prompt : 4 * prompt + 4, 0], expected)


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"algorithm": "rloo"}, "set replies_per_prompt to 2 or more"),
        ({"replies_per_prompt": 5}, "not a multiple of minibatches 2 times replies_per_prompt 5"),
        ({"method": "full"}, "set learning_rate and critic_learning_rate"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_with_the_mend(changes: dict[str, Any], mend: str) -> None:
    with pytest.raises(ValueError, match=mend):
        PpoConfig.model_validate(changes)


def test_a_dear_kl_keeps_the_policy_near_the_reference(backbone: Backbone) -> None:
    def distance(coefficient: float) -> float:
        ppo = make_ppo(backbone, batch_size=32, kl_coefficient=coefficient, kl_target_nats=1e9, kl_horizon=1e9)
        return [ppo.step() for _ in range(6)][-1].kl_nats

    assert distance(1.0) < 0.5 * distance(0.0)


def test_a_rule_that_must_not_be_broken_is_learned(backbone: Backbone) -> None:
    """The token that the model says most often, in a reply of one token, is forbidden."""
    favourite = int(all_logits(backbone, [PROMPTS[0]])[-1].argmax())
    rules = RewardConfig(missing_end=0.0, rules=Rules(patterns=(f"<{favourite}>",), penalty=3.0))
    # Without the end token in play, every reply would count as unended: let it end on anything.
    ppo = make_ppo(backbone, sampler=OneToken(), reward=rules, batch_size=32, response_tokens=1, kl_coefficient=0.0)
    ppo.prompts, ppo.decode = [PROMPTS[0]], lambda ids: "".join(f"<{token}>" for token in ids)
    history = [ppo.step() for _ in range(8)]
    assert history[0].reward < -0.3
    assert history[-1].reward > 0.5 * history[0].reward


class OneToken(TorchSampler):
    """Every reply counts as ended."""

    def sample(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[Rollout]:
        return [Rollout(r.prompt, r.reply, r.logprobs, True) for r in super().sample(prompts, **how)]


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_before_the_first_update_the_critic_is_fitted_to_what_the_rollout_came_to(
    backbone: Backbone, critic: str
) -> None:
    ppo = make_ppo(backbone, critic=critic, kl_coefficient=0.0, gamma=1.0, iterations=2)
    with torch.no_grad():
        for member in ppo.reward_model.members:
            member.head.normal_(0, 3.0, generator=torch.Generator().manual_seed(0))  # type: ignore[operator, union-attr]
    ppo = make_ppo(backbone, critic=critic, kl_coefficient=0.0, gamma=1.0, iterations=2, reward_model=ppo.reward_model)
    with torch.no_grad():
        ppo.sampler.update(backbone, ppo.policy.merged())
    experience = ppo.appraise(ppo.sampler.sample(PROMPTS, max_tokens=6, temperature=ppo.config.temperature, seed=0))
    mask, scores = experience.mask_BR, experience.reward.total_B
    came_to = scores[:, None].expand_as(mask)[mask]  # without a KL term and with γ = 1 a reply's score, at each token
    guessed = experience.values_BR[mask].clone()
    slope = min(max(float(np.polyfit(guessed.numpy(), came_to.numpy(), 1)[0]), 0.0), 1.0)
    ppo._calibrate_critic(experience)
    expected = slope * guessed + (came_to.mean() - slope * guessed.mean())
    torch.testing.assert_close(experience.values_BR[mask], expected.float(), rtol=1e-3, atol=1e-3)
    assert (experience.values_BR[mask] - came_to).var() <= came_to.var() * 1.001 < (guessed - came_to).var()
    assert ppo.critic is not None
    rollouts = ppo.sampler.sample(PROMPTS, max_tokens=6, temperature=ppo.config.temperature, seed=0)
    torch.testing.assert_close(ppo.appraise(rollouts).values_BR[mask], expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 2), (3, 4)])
def test_optimizer_steps_are_epochs_times_minibatches(backbone: Backbone, epochs: int, minibatches: int) -> None:
    ppo = make_ppo(backbone, epochs=epochs, minibatches=minibatches)
    assert [ppo.step().optimizer_steps for _ in range(2)] == [epochs * minibatches] * 2
    # Adam's own count agrees, for policy and critic alike.
    counts = {float(state["step"]) for state in ppo.optimizer.state.values()}
    assert counts == {2.0 * epochs * minibatches}


def test_on_the_first_minibatch_the_ratio_is_one(backbone: Backbone) -> None:
    ppo = make_ppo(backbone, epochs=1, minibatches=1)
    for _ in range(3):  # the policy differs from the reference after the first
        step = ppo.step()
        assert step.ratio_max == pytest.approx(1.0, abs=1e-4)
        assert step.approx_kl_per_token == pytest.approx(0.0, abs=1e-6)
        assert step.clip_fraction == 0.0
    assert step.kl_nats > 1e-3


def test_later_minibatches_see_a_policy_that_has_moved(backbone: Backbone) -> None:
    step = make_ppo(backbone, epochs=3).step()
    assert step.ratio_max > 1.01
    assert step.approx_kl_per_token > 1e-5


def test_epochs_end_early_once_the_policy_has_moved_too_far(backbone: Backbone) -> None:
    step = make_ppo(backbone, epochs=6, stop_approx_kl=1e-3, learning_rate=3e-2).step()
    assert step.optimizer_steps < 12
    assert step.optimizer_steps % 2 == 0
    assert step.approx_kl_per_token > 1e-3


def test_learning_rates_anneal_linearly_to_zero(backbone: Backbone) -> None:
    ppo = make_ppo(backbone, iterations=4, critic_learning_rate=2e-2)
    rates = []
    for _ in range(4):
        step = ppo.step()
        assert [group["lr"] for group in ppo.optimizer.param_groups] == [step.learning_rate, 2 * step.learning_rate]
        rates.append(step.learning_rate)
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_adams_epsilon_is_ppos(backbone: Backbone) -> None:
    assert {group["eps"] for group in make_ppo(backbone).optimizer.param_groups} == {1e-5}


def test_the_kl_coefficient_follows_the_controller(backbone: Backbone) -> None:
    ppo = make_ppo(backbone, kl_target_nats=0.05, kl_horizon=200.0)
    coefficient = CONFIG.kl_coefficient
    for _ in range(4):
        step = ppo.step()
        assert step.kl_coefficient == pytest.approx(coefficient)
        coefficient = adapt_kl_coefficient(coefficient, step.kl_nats, 0.9 * 0.05, 16, 200.0)
        coefficient = max(coefficient, CONFIG.kl_coefficient)
    assert ppo.kl_coefficient == pytest.approx(coefficient)
    assert coefficient > CONFIG.kl_coefficient


def test_a_policy_nearer_than_the_target_is_not_let_go(backbone: Backbone) -> None:
    ppo = make_ppo(backbone, kl_target_nats=1e9, kl_horizon=20.0)
    ppo.step()
    assert ppo.step().kl_coefficient == CONFIG.kl_coefficient


def test_every_prompt_is_used_once_before_any_is_used_again(backbone: Backbone) -> None:
    ppo = make_ppo(backbone, batch_size=6, minibatches=2)
    taken = [ppo._next_prompts(6) for _ in range(8)]
    flat = [index for batch in taken for index in batch]
    for start in range(0, 48, 16):
        assert sorted(flat[start : start + 16]) == list(range(16))
    assert flat[:16] != flat[16:32]


def _comparable(step: Iteration) -> dict[str, Any]:
    return {name: value for name, value in asdict(step).items() if name not in SECONDS}


def test_stopped_and_restored_into_fresh_objects_it_ends_bit_for_bit_where_it_would_have(tmp_path: Path) -> None:
    changes = {"iterations": 4, "kl_target_nats": 0.1, "batch_size": 6}  # 6 of 16 prompts: the queue matters
    unbroken = make_ppo(make_backbone(num_hidden_layers=2), **changes)
    expected = [unbroken.step() for _ in range(4)]

    first = make_ppo(make_backbone(num_hidden_layers=2), **changes)
    history = [first.step(), first.step()]
    folder = RunFolder(tmp_path / "run")
    folder.save_state({"ppo": first.state(), "history": [as_row(step) for step in history]})
    first.step()  # lost with the process
    torch.manual_seed(987)  # and whatever else drew random numbers

    second = make_ppo(make_backbone(num_hidden_layers=2), **changes)
    state = folder.load_state()
    assert state is not None
    second.restore(state["ppo"])
    assert second.iteration == 2
    history += [second.step(), second.step()]
    assert [_comparable(step) for step in history] == [_comparable(step) for step in expected]
    for one, other in ((unbroken.policy, second.policy), (unbroken.critic, second.critic)):
        found = other.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in one.state_dict().items())
    assert unbroken.kl_coefficient == second.kl_coefficient
    assert torch.equal(unbroken.generator.get_state(), second.generator.get_state())
    for one_state, other_state in zip(unbroken.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(torch.equal(one_state[name], other_state[name]) for name in one_state)


def _without(part: str, name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state[part].pop(name)


@pytest.mark.parametrize(
    "damage",
    [
        _without("critic", "surprise_head"),  # before there was one
        lambda state: state["policy"].popitem(),
        lambda state: state.pop("optimizer"),
        lambda state: state["optimizer"]["param_groups"].pop(),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_mend(
    backbone: Backbone, damage: Callable[[dict[str, Any]], Any]
) -> None:
    state = make_ppo(backbone).state()
    damage(state)
    with pytest.raises(OtherCheckpoint, match=r"delete checkpoint\.pt in the run's folder"):
        make_ppo(backbone).restore(state)


def test_another_seed_takes_another_way(backbone: Backbone) -> None:
    one, other = make_ppo(backbone), make_ppo(backbone)
    other.generator.manual_seed(4)
    assert _comparable(one.step()) != _comparable(other.step())


class Deaf(TorchSampler):
    """An engine whose weights never change: the adapter is never delivered."""

    def update(self, backbone: Backbone, weights: dict[str, Tensor]) -> None:
        super().update(backbone, {})


class Twice(TorchSampler):
    """An engine that adds the adapter to weights that hold it already."""

    def update(self, backbone: Backbone, weights: dict[str, Tensor]) -> None:
        super().update(backbone, {name: 2 * w.detach() - backbone.weight(name) for name, w in weights.items()})


class Silent(TorchSampler):
    def sample(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[Rollout]:
        return [
            Rollout(r.prompt, r.reply, [float("nan")] * len(r.reply), r.ended) for r in super().sample(prompts, **how)
        ]


@pytest.mark.parametrize("sampler", [Deaf(), Twice()], ids=["never applied", "applied twice"])
def test_a_sampler_that_runs_other_weights_stops_the_run(backbone: Backbone, sampler: TorchSampler) -> None:
    ppo = make_ppo(backbone, sampler=sampler, learning_rate=3e-2)
    ppo.step()  # a new adapter changes nothing, so there is nothing to see yet
    with pytest.raises(SamplerMismatch, match=r"differ from the trainer's by 0\.\d+ nats on average, over the bound"):
        [ppo.step() for _ in range(4)]


def test_a_sampler_whose_logprobs_are_no_numbers_stops_the_run(backbone: Backbone) -> None:
    with pytest.raises(SamplerMismatch):
        make_ppo(backbone, sampler=Silent()).step()


class Biased(TorchSampler):
    """Right weights, slightly wrong logprobs, as in bf16: here each token is said to be a little too likely."""

    def sample(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[Rollout]:
        rollouts = super().sample(prompts, **how)
        return [Rollout(r.prompt, r.reply, [value + 0.03 for value in r.logprobs], r.ended) for r in rollouts]


def test_the_gap_between_sampler_and_trainer_is_measured_and_weighted_for(backbone: Backbone) -> None:
    exact, biased = make_ppo(backbone).step(), make_ppo(backbone, sampler=Biased()).step()
    assert exact.sampler_gap_nats < 1e-4
    assert exact.importance_mean == pytest.approx(1.0, abs=1e-4)
    assert biased.sampler_gap_nats == pytest.approx(0.03, abs=1e-3)
    assert biased.importance_mean == pytest.approx(torch.tensor(-0.03).exp().item(), abs=1e-3)


def test_an_update_does_not_depend_on_how_the_minibatch_is_cut(backbone: Backbone) -> None:
    rows = []
    for tokens in (256, 8192):
        ppo = make_ppo(backbone, epochs=1, minibatches=1, batch_size=48, microbatch_tokens=tokens)
        ppo.step()
        rows.append(ppo.policy.state_dict() | ppo.critic.state_dict())
    pieces = Batch.of([[1] * 2] * 48, [[1] * 6] * 48, shared=False).by_length(256)
    assert len(pieces) > 1, "the smaller limit must cut the minibatch"
    for name, tensor in rows[0].items():
        torch.testing.assert_close(tensor, rows[1][name], rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_an_appraisal_by_hand(backbone: Backbone) -> None:
    ppo = make_ppo(backbone)
    with torch.no_grad():
        for parameter in ppo.policy.b.values():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    ppo.sampler.update(backbone, ppo.policy.merged())
    rollouts = ppo.sampler.sample(PROMPTS[:5], max_tokens=6, temperature=0.9, seed=0)
    found = ppo.appraise(rollouts)
    for row, rollout in enumerate(rollouts):
        size = len(rollout.reply)
        assert found.logprobs_BR[row, :size].tolist() == pytest.approx(rollout.logprobs, abs=1e-4)
        logits = backbone.model(input_ids=torch.tensor([rollout.prompt + rollout.reply])).logits[0] / 0.9  # type: ignore[operator]
        table = torch.log_softmax(logits, -1)
        reference = [float(table[len(rollout.prompt) - 1 + t, token]) for t, token in enumerate(rollout.reply)]
        assert found.reference_BR[row, :size].tolist() == pytest.approx(reference, abs=1e-4)
        kl = sum(rollout.logprobs) - sum(reference)
        assert found.kl_nats_B[row].item() == pytest.approx(kl, abs=1e-3)
    assert found.kl_nats_B.abs().max() > 0.01


def test_a_batch_that_minibatches_do_not_divide_is_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match="batch_size 10 is not a multiple of minibatches 4 times replies_per_prompt 1"):
        PpoConfig(batch_size=10, minibatches=4)
