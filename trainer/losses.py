"""PPO's losses, the KL estimators and the adaptive KL controller: pure functions.

Sources: Schulman et al. 2017 (arXiv 1707.06347); Ziegler et al. 2019 (arXiv 1909.08593) for the controller; truncated
importance weights for the gap between the engine that sampled and the model that learns: Yao et al. 2025. Shapes: B
replies, R reply tokens; masks are True on real reply tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def masked_mean(values_BR: Tensor, mask_BR: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Mean over masked tokens. `count` replaces the divisor where the tokens come in several pieces."""
    return (values_BR * mask_BR).sum() / (mask_BR.sum() if count is None else count)


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor  # k3 estimate of KL(rollout policy ‖ current policy), nats per token
    ratio_max: Tensor


def policy_loss(
    logprobs_BR: Tensor,
    old_logprobs_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float,
    importance_BR: Tensor | None = None,
    count: Tensor | float | None = None,
) -> PolicyLoss:
    """mean max(−Aρ, −A·clip(ρ, 1−ε, 1+ε)), each token times its (constant) importance weight."""
    log_ratio = (logprobs_BR - old_logprobs_BR) * mask_BR
    ratio = log_ratio.exp()
    plain = -advantages_BR * ratio
    clipped = -advantages_BR * ratio.clamp(1 - clip, 1 + clip)
    losses = torch.maximum(plain, clipped)
    if importance_BR is not None:
        losses = losses * importance_BR
    with torch.no_grad():
        clip_fraction = masked_mean((clipped > plain).to(ratio.dtype), mask_BR, count)
        _, _, k3_BR = kl_estimates(log_ratio)
        approx_kl = masked_mean(k3_BR, mask_BR, count)
        ratio_max = (ratio * mask_BR).max()
    return PolicyLoss(masked_mean(losses, mask_BR, count), clip_fraction, approx_kl, ratio_max)


def value_loss(
    values_BR: Tensor,
    old_values_BR: Tensor,
    returns_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float,
    count: Tensor | float | None = None,
) -> Tensor:
    """½ mean max((V−R)², (clip(V, V_old ± ε) − R)²)."""
    clipped = torch.clamp(values_BR, old_values_BR - clip, old_values_BR + clip)
    losses = torch.maximum((values_BR - returns_BR) ** 2, (clipped - returns_BR) ** 2)
    return 0.5 * masked_mean(losses, mask_BR, count)


def importance_weights(old_logprobs_BR: Tensor, sampler_logprobs_BR: Tensor, mask_BR: Tensor, cap: float) -> Tensor:
    """min(π_trainer / π_sampler, cap) per token; 1 where there is no token."""
    ratio = torch.exp((old_logprobs_BR - sampler_logprobs_BR) * mask_BR).clamp(max=cap)
    return torch.where(mask_BR, ratio, torch.ones_like(ratio))


def kl_estimates(log_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of KL(q ‖ p) from log p/q at samples of q (Schulman 2020, "Approximating KL divergence")."""
    return -log_ratio, log_ratio**2 / 2, torch.expm1(log_ratio) - log_ratio


def adapt_kl_coefficient(
    coefficient: float, kl_nats: float, target_nats: float, episodes: int, horizon: float
) -> float:
    """β ← β (1 + clip(KL/target − 1, ±0.2) · n/horizon)."""
    error = min(max(kl_nats / target_nats - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)
