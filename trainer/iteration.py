"""What one iteration of PPO did: the row that curves, tables and the live display are drawn from."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Iteration:
    """What one iteration did; nats are per reply unless they say per token."""

    iteration: int
    episodes: int
    reward: float
    votes_reward: float
    """The reward model's own mean score, before it is bent and before the other terms."""
    uncertainty: float
    kl_nats: float
    kl_coefficient: float
    entropy_nats_per_token: float
    clip_fraction: float
    approx_kl_per_token: float
    ratio_max: float
    value_loss: float
    explained_variance: float
    sampler_gap_nats: float
    importance_mean: float
    reply_tokens: float
    ended: float
    optimizer_steps: int
    learning_rate: float
    rollout_seconds: float
    score_seconds: float
    update_seconds: float
    tokens_per_second: float
    judge_reward: float | None
    """By the second judge, where there is one."""
    terms: dict[str, float]
    """Of the composed reward, each with its weight: means over the replies."""


def as_row(iteration: Iteration) -> dict[str, float]:
    """Flat, for tables and curves, without what was not measured: a term of the reward is called `term/<name>`."""
    row = asdict(iteration)
    terms = {f"term/{name}": value for name, value in row.pop("terms").items()}
    return {name: float(value) for name, value in (row | terms).items() if value is not None}
