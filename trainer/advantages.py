"""Per-token rewards and advantages, by GAE or by leaving one out, and whitening: pure functions.

Sources: Schulman et al. 2016 (arXiv 1506.02438) for GAE; lm-human-preferences for where the score goes and for
whitening; Ahmadian et al. 2024 (arXiv 2402.14740) for RLOO. Shapes: P prompts, K replies to each, B replies in all, R
reply tokens; masks are True on real reply tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(
    scores_B: Tensor, logprobs_BR: Tensor, reference_BR: Tensor, mask_BR: Tensor, kl_coefficient: float
) -> Tensor:
    """r_t = −β (log π − log π_ref)_t, plus the score on the last real token (not one after it)."""
    rewards_BR = -kl_coefficient * (logprobs_BR - reference_BR) * mask_BR
    last_B = mask_BR.sum(1) - 1
    return rewards_BR.scatter_add(1, last_B[:, None], scores_B[:, None].to(rewards_BR.dtype))


def gae(
    rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns: δ_t = r_t + γ V_{t+1} − V_t, A_t = δ_t + γλ A_{t+1}, R = A + V; V ends as 0."""
    mask = mask_BR.to(values_BR.dtype)
    values_BR = values_BR * mask
    rewards_BR = rewards_BR * mask
    advantages = torch.zeros_like(values_BR)
    running_B = torch.zeros_like(values_BR[:, 0])
    steps = values_BR.shape[1]
    for t in reversed(range(steps)):
        next_values_B = values_BR[:, t + 1] if t + 1 < steps else torch.zeros_like(running_B)
        delta_B = rewards_BR[:, t] + gamma * next_values_B - values_BR[:, t]
        running_B = (delta_B + gamma * lam * running_B) * mask[:, t]
        advantages[:, t] = running_B
    return advantages, advantages + values_BR


def whiten(values_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Zero mean and unit (biased) variance over the masked tokens; zero elsewhere."""
    chosen = values_BR[mask_BR]
    mean = chosen.mean()
    variance = chosen.var(unbiased=False)
    return (values_BR - mean) * torch.rsqrt(variance + 1e-8) * mask_BR


def leave_one_out(rewards_B: Tensor, replies_per_prompt: int) -> Tensor:
    """(B,): each reply's reward less the mean of the others to the same prompt; K neighbours share a prompt."""
    rewards_PK = rewards_B.view(-1, replies_per_prompt)
    others_PK = (rewards_PK.sum(1, keepdim=True) - rewards_PK) / (replies_per_prompt - 1)
    return (rewards_PK - others_PK).view(-1)
