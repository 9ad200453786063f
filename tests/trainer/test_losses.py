"""PPO's losses against float64 arithmetic, token by token; the KL estimators; the controller."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses import (
    adapt_kl_coefficient,
    importance_weights,
    kl_estimates,
    masked_mean,
    policy_loss,
    value_loss,
)

CLIP = 0.2


def _random(seed: int, rows: int = 3, steps: int = 5) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("new", "old", "advantages", "values", "old_values", "returns", "sampler")
    tensors = {name: torch.randn(rows, steps, generator=generator, dtype=torch.float64) * 0.5 for name in names}
    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    return tensors, torch.arange(steps)[None, :] < lengths[:, None]


@given(st.integers(0, 10_000))
def test_the_policy_loss_in_float32_agrees_with_its_definition_in_float64(seed: int) -> None:
    tensors, mask = _random(seed)
    importance = importance_weights(tensors["old"], tensors["sampler"], mask, cap=2.0)
    expected, clipped, kl, largest = 0.0, 0, 0.0, 0.0
    for row, step in mask.nonzero().tolist():
        ratio = math.exp(float(tensors["new"][row, step] - tensors["old"][row, step]))
        advantage = float(tensors["advantages"][row, step])
        plain, limited = -advantage * ratio, -advantage * min(max(ratio, 1 - CLIP), 1 + CLIP)
        weight = min(math.exp(float(tensors["old"][row, step] - tensors["sampler"][row, step])), 2.0)
        expected += max(plain, limited) * weight
        clipped += limited > plain
        kl += ratio - 1 - math.log(ratio)
        largest = max(largest, ratio)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    found = policy_loss(
        single["new"], single["old"], single["advantages"], mask, clip=CLIP, importance_BR=importance.float()
    )
    count = int(mask.sum())
    assert float(found.loss) == pytest.approx(expected / count, abs=1e-6)
    assert float(found.clip_fraction) == pytest.approx(clipped / count, abs=1e-6)
    assert float(found.approx_kl) == pytest.approx(kl / count, abs=1e-6)
    assert float(found.ratio_max) == pytest.approx(largest, abs=1e-5)


@given(st.integers(0, 10_000))
def test_the_value_loss_in_float32_agrees_with_its_definition_in_float64(seed: int) -> None:
    tensors, mask = _random(seed)
    expected = 0.0
    for row, step in mask.nonzero().tolist():
        value, old, goal = (float(tensors[name][row, step]) for name in ("values", "old_values", "returns"))
        limited = min(max(value, old - CLIP), old + CLIP)
        expected += max((value - goal) ** 2, (limited - goal) ** 2)
    found = value_loss(
        tensors["values"].float(), tensors["old_values"].float(), tensors["returns"].float(), mask, clip=CLIP
    )
    assert float(found) == pytest.approx(0.5 * expected / int(mask.sum()), abs=1e-6)


@given(st.integers(0, 1000))
def test_pieces_of_a_minibatch_add_up_to_the_whole(seed: int) -> None:
    tensors, mask = _random(seed, rows=4)

    def loss(rows: slice) -> Tensor:
        chosen = [tensors[name][rows] for name in ("new", "old", "advantages")]
        return policy_loss(*chosen, mask[rows], clip=CLIP, count=mask.sum()).loss

    assert float(loss(slice(0, 1)) + loss(slice(1, 4))) == pytest.approx(float(loss(slice(0, 4))), abs=1e-12)


def test_what_lies_beyond_a_reply_changes_neither_loss_nor_gradient() -> None:
    tensors, mask = _random(3)
    new = tensors["new"].requires_grad_()
    loss = policy_loss(new, tensors["old"], tensors["advantages"], mask, clip=CLIP).loss
    loss.backward()
    assert new.grad is not None
    assert not new.grad[~mask].any()
    spoiled = {name: torch.where(mask, value, torch.full_like(value, 50.0)) for name, value in tensors.items()}
    again = policy_loss(spoiled["new"], spoiled["old"], spoiled["advantages"], mask, clip=CLIP)
    assert again.loss.item() == pytest.approx(loss.item())
    assert float(again.ratio_max) < 50


def test_at_the_rollouts_own_policy_the_ratio_is_one_and_nothing_is_clipped() -> None:
    tensors, mask = _random(5)
    new = tensors["old"].clone().requires_grad_()
    found = policy_loss(new, tensors["old"], tensors["advantages"], mask, clip=CLIP)
    assert float(found.ratio_max) == 1.0
    assert float(found.approx_kl) == 0.0
    assert float(found.clip_fraction) == 0.0
    # There the gradient is that of plain policy gradient: -A / tokens.
    found.loss.backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, -tensors["advantages"] * mask / mask.sum())


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 1.3), (-1.0, 0.7)])
def test_a_token_that_has_moved_far_enough_its_way_gets_no_more_gradient(advantage: float, ratio: float) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    found = policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), one, clip=CLIP)
    found.loss.backward()
    assert new.grad is not None
    assert float(new.grad) == 0.0
    assert float(found.clip_fraction) == 1.0


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 0.7), (-1.0, 1.3)])
def test_a_token_that_has_moved_the_wrong_way_is_pulled_back(advantage: float, ratio: float) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), one, clip=CLIP).loss.backward()
    assert new.grad is not None
    assert float(new.grad) * advantage < 0


def test_importance_weights_are_capped_from_above_alone() -> None:
    old = torch.tensor([[0.0, -1.0, -5.0, 7.0]])
    sampler = torch.tensor([[-3.0, -1.0, 0.0, -7.0]])
    mask = torch.tensor([[True, True, True, False]])
    weights = importance_weights(old, sampler, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 1.0, math.exp(-5.0), 1.0]]))


def test_importance_weights_multiply_the_loss() -> None:
    tensors, mask = _random(8)
    arguments = (tensors["new"], tensors["old"], tensors["advantages"], mask)
    plain = policy_loss(*arguments, clip=CLIP).loss
    halved = policy_loss(*arguments, clip=CLIP, importance_BR=torch.full_like(tensors["new"], 0.5)).loss
    assert float(halved) == pytest.approx(float(plain) / 2)


@pytest.mark.parametrize(
    ("mean", "spread", "bias"),
    # Standard deviation over the true KL, and bias over it, of k1, k2 and k3.
    [(0.1, (20.0, 1.42, 1.42), (0.0, 0.002, 0.0)), (1.0, (2.0, 1.73, 1.7), (0.0, 0.25, 0.0))],
)
def test_kl_estimators_of_two_gaussians(
    mean: float, spread: tuple[float, float, float], bias: tuple[float, float, float]
) -> None:
    """q = N(0, 1), p = N(mean, 1): the table of Schulman's note, with the true KL of mean² / 2."""
    samples = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_ratio = mean * samples - mean**2 / 2  # log p/q
    truth = mean**2 / 2
    for estimate, expected_spread, expected_bias in zip(kl_estimates(log_ratio), spread, bias, strict=True):
        assert float(estimate.std()) / truth == pytest.approx(expected_spread, rel=0.02)
        assert float(estimate.mean()) / truth - 1 == pytest.approx(expected_bias, abs=0.05 if mean < 0.5 else 0.01)


def test_k2_and_k3_are_never_negative() -> None:
    log_ratio = torch.linspace(-3, 3, 601)
    k1, k2, k3 = kl_estimates(log_ratio)
    assert float(k1.min()) < 0
    assert float(k2.min()) >= 0
    assert float(k3.min()) >= 0


def test_the_controller_moves_the_coefficient_by_its_formula() -> None:
    assert adapt_kl_coefficient(0.15, 12.0, 6.0, 512, 1e4) == pytest.approx(0.151536, abs=1e-9)


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (600.0, 1.02), (5.4, 0.99), (0.0, 0.98)])
def test_the_controller_is_proportional_and_clipped_both_ways(kl: float, factor: float) -> None:
    assert adapt_kl_coefficient(1.0, kl, 6.0, 100, 1000.0) == pytest.approx(factor)


def test_a_masked_mean_divides_by_the_tokens_that_count() -> None:
    values, mask = torch.tensor([[1.0, 2.0, 99.0]]), torch.tensor([[True, True, False]])
    assert float(masked_mean(values, mask)) == 1.5
    assert float(masked_mean(values, mask, count=6)) == 0.5
