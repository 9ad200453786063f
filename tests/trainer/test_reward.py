"""The composed reward: each term by hand."""

import pytest
import torch

from trainer.config import RewardConfig
from trainer.reward import compose, repetition

SCORES = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]])  # two members, three replies
REPLIES = [[5, 6, 7, 1], [5, 6, 7, 5, 6, 7, 1], [9, 1]]
TEXTS = ["a fine answer", "never SAY Fish and chips", "short"]


def test_terms_sum_to_the_total() -> None:
    config = RewardConfig(
        uncertainty=0.5, length_weight=-0.1, repetition_weight=2.0, banned=("fish", "chips", "fine "), banned_penalty=3
    )
    reward = compose(SCORES, REPLIES, TEXTS, [True, True, True], config)
    expected = {
        "votes": [2.0, 0.0, 2.0],
        "uncertainty": [-0.5, 0.0, 0.0],  # the variance of 1 and 3 is 1
        "length": [-0.4, -0.7, -0.2],
        "repetition": [0.0, -2.0 / 5, 0.0],  # of five 3-grams one repeats
        "rules": [-3.0, -6.0, 0.0],
    }
    assert set(reward.terms) == set(expected)
    for name, values in expected.items():
        assert reward.terms[name].tolist() == pytest.approx(values), name
    torch.testing.assert_close(reward.total_B, torch.stack(list(reward.terms.values())).sum(0))


def test_a_reply_that_does_not_end_gets_the_fixed_score_whatever_it_says() -> None:
    reward = compose(SCORES, REPLIES, TEXTS, [False, True, False], RewardConfig(missing_end=-1.0))
    assert reward.total_B[0] == reward.total_B[2] == -1.0
    assert reward.total_B[1] != -1.0


def test_doubt_costs_even_where_the_mean_is_the_same() -> None:
    scores = torch.tensor([[1.0, -1.0], [1.0, 3.0]])
    reward = compose(scores, [[5, 1], [6, 1]], ["a", "b"], [True, True], RewardConfig(uncertainty=0.5))
    assert reward.total_B[0] > reward.total_B[1]


@pytest.mark.parametrize(
    ("ids", "share"), [([], 0.0), ([1, 2], 0.0), ([1, 2, 3, 4], 0.0), ([7] * 10, 7 / 8), ([1, 2, 3, 1, 2, 3], 0.25)]
)
def test_repetition_is_the_share_of_grams_seen_before(ids: list[int], share: float) -> None:
    assert repetition(ids) == pytest.approx(share)
