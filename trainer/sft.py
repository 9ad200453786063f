"""The supervised stage of a run: the policy imitates what people wrote in a reply's place.

Cross-entropy on the replies' tokens alone (Ouyang et al. 2022, section 3.5). Few people correct, so what is kept is
the epoch that predicts corrections of other people best, and that may be the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainer.backbone import Backbone, Weights
from trainer.batches import Batch, Part
from trainer.config import SftConfig
from trainer.device import passes
from trainer.examples import Demonstration
from trainer.logprobs import reply_logprobs, score_logprobs
from trainer.trainable import Trainable, differentiate, size
from trainer.workers import even_parts

FEWEST_TO_CHOOSE_BY = 8


@dataclass(frozen=True)
class SftEpoch:
    """Cross-entropy after an epoch, in nats per reply token; epoch 0 is the start."""

    epoch: int
    seen: float
    held_out: float | None  # None where too few were held out
    kept: bool = False


def imitate(
    backbone: Backbone,
    policy: Trainable,
    demonstrations: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    *,
    config: SftConfig,
    seed: int,
    on_step: Callable[[float], None] = lambda share: None,
) -> list[SftEpoch]:
    """Train `policy` in place. Returns the start and each epoch, of which one is kept."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    steps = config.epochs * math.ceil(len(demonstrations) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    judged = held_out if len(held_out) >= FEWEST_TO_CHOOSE_BY else []

    def measured(epoch: int) -> SftEpoch:
        seen = cross_entropy(backbone, policy, demonstrations)
        return SftEpoch(epoch, seen, cross_entropy(backbone, policy, judged) if judged else None)

    history = [measured(0)]
    best, weights = 0, _copy(policy)
    for epoch in range(1, config.epochs + 1):
        for index in torch.split(torch.randperm(len(demonstrations), generator=generator), config.batch_size):
            _step(backbone, policy, [demonstrations[row] for row in index.tolist()], optimizer)
            schedule.step()
            on_step(schedule.last_epoch / steps)
        history.append(measured(epoch))
        if not judged or (history[-1].held_out or 0.0) < (history[best].held_out or 0.0):
            best, weights = epoch, _copy(policy)
    policy.load_state_dict(weights)
    return [SftEpoch(each.epoch, each.seen, each.held_out, each.epoch == best) for each in history]


def _step(
    backbone: Backbone, policy: Trainable, demonstrations: Sequence[Demonstration], optimizer: torch.optim.Optimizer
) -> None:
    """One optimizer step on the weighted mean over reply tokens."""
    batch = Batch.of([d.prompt for d in demonstrations], [d.reply for d in demonstrations], backbone.device)
    weight_B = torch.tensor([d.weight for d in demonstrations], device=backbone.device)
    total = (weight_B * batch.reply_lengths_B).sum()

    def backward(part: Part, weights: Weights) -> None:
        piece = part.batch
        hidden_CH = backbone.run(backbone.embed(piece, weights), piece, 0, backbone.depth, weights)
        logprobs_BR = reply_logprobs(backbone, hidden_CH, piece, 1.0, weights)
        (-(weight_B[part.replies] * logprobs_BR.sum(1)).sum() / total).backward()  # type: ignore[no-untyped-call]

    parts = even_parts(batch, passes(backbone.device).learning_tokens, parameters=size(policy))
    differentiate(parts, policy, backward)
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # now, so that what learns next finds none


@torch.no_grad()
def cross_entropy(backbone: Backbone, policy: Trainable, demonstrations: Sequence[Demonstration]) -> float:
    """Nats per reply token, at temperature 1."""
    prompts, replies = [d.prompt for d in demonstrations], [d.reply for d in demonstrations]
    logprobs_BR = score_logprobs(backbone, prompts, replies, 1.0, policy.merged())
    return -logprobs_BR.sum().item() / sum(map(len, replies))


def _copy(policy: Trainable) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}
