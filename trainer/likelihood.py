"""How probable is what a person said, given the replies' scores: one likelihood for pairs, ties, thumbs and ratings.

Pair: Rao and Kupper (1967) with a position term γ and a tie parameter ν ≥ 1:
    P(left) = e^{l+γ} / (e^{l+γ} + ν e^{r}),  P(right) by symmetry,  P(tie) = the rest.
Thumb: P(up) = σ(a·s + b_user + c·x); x is the reply's surface (length, language, form), since thumbs follow it whatever
is said: whether it is liked, pairs tell. Rating y in 0..1: cross-entropy of y against the same σ. Both bad: each reply
is an absolute negative, and the pair a tie. Every outcome is believed with the label-noise floor (Christiano et al.
2017, section 2.2.3). All functions return negative log-likelihoods in nats, one per vote (shape P for pairs, S for
single replies; F numbers describe a surface).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEFT, RIGHT, TIE, BOTH_BAD = range(4)


def pair_probabilities(left_P: Tensor, right_P: Tensor, position: Tensor, tie: Tensor) -> Tensor:
    """(P, 3): left, right, tie. `tie` is ν ≥ 1."""
    gap = left_P - right_P + position
    log_tie = tie.log()
    win_left = torch.sigmoid(gap - log_tie)
    win_right = torch.sigmoid(-gap - log_tie)
    return torch.stack([win_left, win_right, (1 - win_left - win_right).clamp_min(1e-6)], dim=-1)


def floored(probability: Tensor, noise: float, outcomes: int) -> Tensor:
    return (1 - noise) * probability + noise / outcomes


@dataclass(frozen=True)
class Nll:
    pairs_P: Tensor
    thumbs_S: Tensor


class VoteModel(nn.Module):
    """The few parameters between a score and a vote. They explain people, and are dropped when replies are scored."""

    def __init__(
        self,
        users: int,
        label_noise: float,
        user_intercept_std: float,
        surfaces: int = 0,
        surface_intercept_std: float = 1.0,
    ) -> None:
        """surfaces: how many numbers describe a reply's surface."""
        super().__init__()
        self.surface_intercept_std = surface_intercept_std
        self.label_noise = label_noise
        self.user_intercept_std = user_intercept_std
        self.position = nn.Parameter(torch.zeros(()))
        self.raw_tie = nn.Parameter(torch.tensor(math.log(math.expm1(0.2))))
        self.raw_slope = nn.Parameter(torch.tensor(math.log(math.expm1(1.0))))
        self.bias = nn.Parameter(torch.zeros(()))
        self.user_intercept = nn.Parameter(torch.zeros(max(users, 1)))
        self.surface_intercept = nn.Parameter(torch.zeros(surfaces))

    @property
    def tie(self) -> Tensor:
        return 1.0 + F.softplus(self.raw_tie)

    @property
    def slope(self) -> Tensor:
        return F.softplus(self.raw_slope)

    def pair_nll(self, left_P: Tensor, right_P: Tensor, outcome_P: Tensor) -> Tensor:
        """`outcome_P`: LEFT, RIGHT, TIE or BOTH_BAD."""
        probabilities = floored(pair_probabilities(left_P, right_P, self.position, self.tie), self.label_noise, 3)
        index = outcome_P.clamp(max=TIE)  # both bad is a tie as well
        relative = -probabilities.gather(1, index[:, None]).squeeze(1).log()
        down = self._thumb_log_probability(left_P, 0.0, False) + self._thumb_log_probability(right_P, 0.0, False)
        return relative - torch.where(outcome_P == BOTH_BAD, down, torch.zeros_like(down))

    def unrelated_nll(self, own_U: Tensor, unrelated_U: Tensor) -> Tensor:
        """That a prompt's own reply is better than another prompt's: nobody was shown them, so that no place on the
        screen and no tie plays a part."""
        return -floored(torch.sigmoid(own_U - unrelated_U), self.label_noise, 2).log()

    def thumb_nll(self, scores_S: Tensor, user_S: Tensor, up_S: Tensor, surface_SF: Tensor | None = None) -> Tensor:
        """`up_S`: 1 for up, 0 for down, between for a rating. `user_S`: index, −1 for someone unknown. `surface_SF`:
        each column with mean 0 and standard deviation 1 over the votes."""
        intercept_S = torch.where(user_S >= 0, self.user_intercept[user_S.clamp(min=0)], 0.0)
        if surface_SF is not None:
            intercept_S = intercept_S + surface_SF @ self.surface_intercept
        yes = self._thumb_log_probability(scores_S, intercept_S, True)
        no = self._thumb_log_probability(scores_S, intercept_S, False)
        return -(up_S * yes + (1 - up_S) * no)

    def _thumb_log_probability(self, scores_S: Tensor, intercept_S: Tensor | float, up: bool) -> Tensor:
        logit = self.slope * scores_S + self.bias + intercept_S
        return floored(torch.sigmoid(logit if up else -logit), self.label_noise, 2).log()

    def prior_nll(self) -> Tensor:
        """Intercepts are shrunk towards zero: −log N(b; 0, τ²), without its constant."""
        users = (self.user_intercept / self.user_intercept_std).pow(2).sum()
        return 0.5 * (users + (self.surface_intercept / self.surface_intercept_std).pow(2).sum())
