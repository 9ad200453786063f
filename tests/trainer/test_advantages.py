"""Rewards per token, generalised advantage estimation and whitening."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.advantages import gae, leave_one_out, token_rewards, whiten


def _mask(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps)[None, :] < torch.tensor(lengths)[:, None]


def test_gae_of_three_steps_by_hand() -> None:
    advantages, returns = gae(
        torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.1, 0.2, 0.3]]), _mask([3], 3), gamma=1.0, lam=0.95
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.82675, 0.765, 0.7]]))
    torch.testing.assert_close(returns, torch.tensor([[0.92675, 0.965, 1.0]]))


@st.composite
def episodes(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[int]]:
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    number = st.floats(-3, 3, width=32)
    row = st.lists(number, min_size=7, max_size=7)  # what lies beyond a reply's end must not matter
    rows = st.lists(row, min_size=len(lengths), max_size=len(lengths))
    return draw(rows), draw(rows), lengths


@given(episodes(), st.sampled_from([0.9, 1.0]), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_the_scan_equals_a_plain_loop_over_each_reply(
    episode: tuple[list[list[float]], list[list[float]], list[int]], gamma: float, lam: float
) -> None:
    rewards, values, lengths = episode
    double = torch.float64
    advantages, returns = gae(
        torch.tensor(rewards, dtype=double), torch.tensor(values, dtype=double), _mask(lengths, 7), gamma, lam
    )
    for row, length in enumerate(lengths):
        for t in range(length):
            # The definition: a discounted sum of the temporal differences from here to the end.
            expected = 0.0
            for k in range(t, length):
                following = values[row][k + 1] if k + 1 < length else 0.0
                expected += (gamma * lam) ** (k - t) * (rewards[row][k] + gamma * following - values[row][k])
            assert abs(float(advantages[row, t]) - expected) < 1e-9
            assert abs(float(returns[row, t]) - expected - values[row][t]) < 1e-9
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_with_lambda_and_gamma_one_the_return_is_the_sum_of_rewards_to_come() -> None:
    rewards = torch.tensor([[0.5, -0.25, 2.0, 0.0]])
    _, returns = gae(rewards, torch.randn(1, 4), _mask([3], 4), gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[2.25, 1.75, 2.0, 0.0]]))


def test_the_score_is_paid_on_the_last_real_token_and_not_one_after_it() -> None:
    rewards = token_rewards(
        scores_B=torch.tensor([5.0, -3.0]),
        logprobs_BR=torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -9.0, -9.0]]),
        reference_BR=torch.tensor([[-1.5, -1.0, -0.5], [-1.0, 0.0, 0.0]]),
        mask_BR=_mask([3, 1], 3),
        kl_coefficient=0.1,
    )
    expected = torch.tensor([[-0.05, 0.0, 0.05 + 5.0], [0.1 - 3.0, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_tokens_dearer_than_under_the_reference_cost_and_cheaper_ones_pay() -> None:
    mask = _mask([2], 2)
    rewards = token_rewards(
        torch.zeros(1), torch.tensor([[-0.1, -3.0]]), torch.tensor([[-1.0, -1.0]]), mask, kl_coefficient=0.5
    )
    assert rewards[0, 0] < 0 < rewards[0, 1]


def test_whitening_uses_masked_tokens_alone_and_the_biased_variance() -> None:
    values = torch.tensor([[1.0, 2.0, 900.0], [4.0, -700.0, 900.0]])
    mask = _mask([2, 1], 3)
    whitened = whiten(values, mask)
    chosen = torch.tensor([1.0, 2.0, 4.0])
    deviation = ((chosen - chosen.mean()) ** 2).mean()  # divided by 3, not by 2
    torch.testing.assert_close(whitened[mask], (chosen - chosen.mean()) / torch.sqrt(deviation + 1e-8))
    assert not whitened[~mask].any()


def test_whitening_of_equal_values_is_finite() -> None:
    mask = _mask([3], 3)
    assert torch.equal(whiten(torch.full((1, 3), 7.0), mask), torch.zeros(1, 3))


def test_leaving_one_out_compares_a_reply_with_the_others_to_its_prompt() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, -1.0, -1.0, -1.0])
    expected = torch.tensor([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5, 0.0, 0.0, 0.0])
    torch.testing.assert_close(leave_one_out(rewards, 3), expected)
    # The baseline holds nothing of the reply itself: its advantage moves one for one with its reward.
    moved = leave_one_out(rewards + torch.tensor([0.5, 0, 0, 0, 0, 0]), 3)
    assert (moved - leave_one_out(rewards, 3))[0].item() == pytest.approx(0.5)
