"""From scores to what people say: probabilities, their symmetries, and where each vote pushes a score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.likelihood import BOTH_BAD, LEFT, RIGHT, TIE, VoteModel, floored, pair_probabilities

score = st.floats(-6, 6)
NOISE = 0.1


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _model(users: int = 2, noise: float = NOISE) -> VoteModel:
    return VoteModel(users, label_noise=noise, user_intercept_std=1.0).double()


@given(score, score, st.floats(-2, 2), st.floats(1.05, 6))
def test_probabilities_are_rao_and_kuppers_and_sum_to_one(x: float, y: float, position: float, tie: float) -> None:
    found = pair_probabilities(_tensor(x), _tensor(y), _tensor(position), _tensor(tie))[0]
    left = math.exp(x + position) / (math.exp(x + position) + tie * math.exp(y))
    right = math.exp(y) / (math.exp(y) + tie * math.exp(x + position))
    assert found.sum().item() == pytest.approx(1.0, abs=2e-6)
    assert found[0].item() == pytest.approx(left, abs=1e-9)
    assert found[1].item() == pytest.approx(right, abs=1e-9)
    assert found[2].item() == pytest.approx(max(1 - left - right, 1e-6), abs=1e-9)


@given(score, score, st.floats(-2, 2), st.floats(1.01, 6))
def test_swapping_sides_and_the_position_term_swaps_left_and_right(
    x: float, y: float, position: float, tie: float
) -> None:
    found = pair_probabilities(_tensor(x), _tensor(y), _tensor(position), _tensor(tie))[0]
    swapped = pair_probabilities(_tensor(y), _tensor(x), _tensor(-position), _tensor(tie))[0]
    torch.testing.assert_close(found, swapped[[1, 0, 2]])


@given(score, score)
def test_ties_grow_with_nu_and_vanish_at_one(x: float, y: float) -> None:
    ties = [float(pair_probabilities(_tensor(x), _tensor(y), _tensor(0), _tensor(nu))[0, 2]) for nu in (1.0, 1.5, 3, 9)]
    assert ties == sorted(ties)
    assert ties[0] <= 1e-6 < ties[-1]


def test_a_tie_is_likeliest_between_equals_and_position_favours_its_side() -> None:
    gaps = torch.linspace(-4, 4, 9, dtype=torch.float64)
    ties = pair_probabilities(gaps, torch.zeros_like(gaps), _tensor(0), _tensor(2))[:, 2]
    assert int(ties.argmax()) == 4
    even = pair_probabilities(_tensor(0), _tensor(0), _tensor(0), _tensor(1.5))[0]
    tilted = pair_probabilities(_tensor(0), _tensor(0), _tensor(0.7), _tensor(1.5))[0]
    assert even[0] == even[1]
    assert tilted[0] > even[0] > tilted[1]


def _pair_gradient(outcome: int, x: float = 0.3, y: float = 0.3) -> tuple[float, float]:
    left, right = _tensor(x).requires_grad_(), _tensor(y).requires_grad_()
    _model().pair_nll(left, right, torch.tensor([outcome])).sum().backward()
    assert left.grad is not None
    assert right.grad is not None
    return left.grad.item(), right.grad.item()


def test_each_choice_pushes_the_scores_where_it_should() -> None:
    # A gradient step goes against the sign.
    left, right = _pair_gradient(LEFT)
    assert left < 0 < right
    left, right = _pair_gradient(RIGHT)
    assert right < 0 < left
    left, right = _pair_gradient(TIE)
    assert left == pytest.approx(right, abs=1e-12)
    left, right = _pair_gradient(BOTH_BAD)
    assert left > 0
    assert right > 0
    left, right = _pair_gradient(TIE, x=2.0, y=-1.0)
    assert left > 0 > right, "a tie draws unequal scores together"


def test_both_bad_says_more_than_a_tie_and_a_tie_says_nothing_of_the_level() -> None:
    model = _model()
    scores, shifted = (_tensor(0.2), _tensor(-0.4)), (_tensor(3.2), _tensor(2.6))
    tie, both_bad = torch.tensor([TIE]), torch.tensor([BOTH_BAD])
    assert model.pair_nll(*scores, tie).item() == pytest.approx(model.pair_nll(*shifted, tie).item())
    assert model.pair_nll(*shifted, both_bad).item() > model.pair_nll(*scores, both_bad).item() + 0.5


@given(st.floats(-200, 200), st.sampled_from([LEFT, RIGHT, TIE]))
def test_the_noise_floor_bounds_what_one_vote_on_a_pair_can_cost(gap: float, outcome: int) -> None:
    loss = _model().pair_nll(_tensor(gap), _tensor(0), torch.tensor([outcome])).item()
    assert 0 <= loss <= -math.log(NOISE / 3) + 1e-9


@given(st.floats(-200, 200), st.floats(0, 1))
def test_the_noise_floor_bounds_what_one_thumb_can_cost(value: float, up: float) -> None:
    loss = _model().thumb_nll(_tensor(value), torch.tensor([0]), _tensor(up)).item()
    assert 0 <= loss <= -math.log(NOISE / 2) + 1e-9


def test_without_noise_a_confident_mistake_costs_its_whole_gap() -> None:
    loss = _model(noise=0.0).pair_nll(_tensor(30.0), _tensor(0), torch.tensor([RIGHT])).item()
    assert loss == pytest.approx(30.0, abs=0.5)


def test_the_floor_is_a_mixture_with_chance() -> None:
    torch.testing.assert_close(floored(_tensor(0.0, 0.5, 1.0), 0.1, 2), _tensor(0.05, 0.5, 0.95))
    assert float(floored(torch.full((3,), 1 / 3), 0.1, 3).sum()) == pytest.approx(1.0)


def test_a_thumb_is_a_logistic_in_the_score_with_its_users_own_intercept() -> None:
    model = _model()
    with torch.no_grad():
        model.user_intercept.copy_(_tensor(0.0, 1.5))
        model.bias.fill_(0.2)
    slope = model.slope.item()
    scores, users = _tensor(0.5, 0.5, 0.5), torch.tensor([0, 1, -1])
    found = model.thumb_nll(scores, users, _tensor(1, 1, 1)).tolist()

    def expected(logit: float) -> float:
        return -math.log(0.9 / (1 + math.exp(-logit)) + 0.05)

    plain, generous = 0.5 * slope + 0.2, 0.5 * slope + 0.2 + 1.5
    assert found == pytest.approx([expected(plain), expected(generous), expected(plain)])


def test_thumbs_and_ratings_push_the_score_their_way() -> None:
    for label, sign in ((1.0, -1), (0.0, 1), (0.9, -1), (0.1, 1)):
        value = _tensor(0.0).requires_grad_()
        _model().thumb_nll(value, torch.tensor([0]), _tensor(label)).sum().backward()
        assert value.grad is not None
        assert value.grad.item() * sign > 0
    best = min((_model().thumb_nll(_tensor(s), torch.tensor([-1]), _tensor(0.5)).item(), s) for s in (-1.0, 0.0, 1.0))
    assert best[1] == 0.0, "a rating in the middle wants a score in the middle"


def test_a_generous_user_is_explained_by_the_intercept_and_not_by_the_score() -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    value = torch.zeros(40, dtype=torch.float64)
    user = torch.tensor([0] * 20 + [1] * 20)
    up = torch.tensor([1.0] * 20 + [0.0] * 20, dtype=torch.float64)
    for _ in range(200):
        optimizer.zero_grad()
        (model.thumb_nll(value, user, up).sum() + model.prior_nll()).backward()
        optimizer.step()
    first, second = model.user_intercept.tolist()
    assert first > 0.5
    assert second < -0.5
    assert abs(first) < 3
    assert abs(second) < 3


def test_a_surface_that_thumbs_follow_is_explained_by_its_intercept_and_not_by_the_score() -> None:
    model = VoteModel(1, NOISE, 1.0, surfaces=2).double()
    surface = torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 20, dtype=torch.float64)
    up = torch.tensor([1.0, 0.0] * 20, dtype=torch.float64)
    scores = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    users = torch.zeros(40, dtype=torch.long)
    (before,) = torch.autograd.grad(model.thumb_nll(scores, users, up, surface).sum(), scores)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (model.thumb_nll(scores.detach(), users, up, surface).sum() + model.prior_nll()).backward()
        optimizer.step()
    followed, ignored = model.surface_intercept.tolist()
    assert followed > 1.0
    assert ignored == pytest.approx(0.0, abs=1e-6)
    (after,) = torch.autograd.grad(model.thumb_nll(scores, users, up, surface).sum(), scores)
    assert after.abs().max() < 0.5 * before.abs().max(), "the score has less left to explain"


def test_the_prior_is_a_gaussians() -> None:
    model = VoteModel(2, label_noise=NOISE, user_intercept_std=2.0)
    with torch.no_grad():
        model.user_intercept.copy_(torch.tensor([2.0, -4.0]))
    assert model.prior_nll().item() == pytest.approx(0.5 * (1.0 + 4.0))


def test_tie_and_slope_keep_their_bounds_whatever_the_optimiser_does() -> None:
    model = _model()
    assert model.tie.item() == pytest.approx(1.2)
    assert model.slope.item() == pytest.approx(1.0)
    with torch.no_grad():
        model.raw_tie.fill_(-50.0)
        model.raw_slope.fill_(-50.0)
    assert model.tie.item() >= 1.0
    assert model.slope.item() > 0.0
