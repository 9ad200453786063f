"""The logprobs of replies: one function reads them, for training, evaluation and the proof that goes with a policy.

A table of logits is the largest thing that training touches: tokens times vocabulary. It is made a few rows at a time,
small enough to stay in the processor's cache, and never kept: the backward pass makes its rows again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.backbone import FROZEN, Backbone, Weights
from trainer.batches import Batch, Part, padded
from trainer.device import passes
from trainer.fused import chosen_back_, chosen_logprobs, precise, precise_type
from trainer.workers import each_part, even_parts


def reply_logprobs(
    backbone: Backbone, hidden_CH: Tensor, batch: Batch, temperature: float, weights: Weights = FROZEN
) -> Tensor:
    """(B, R): fp32 logprobs of the replies' tokens at this temperature; differentiable.

    hidden_CH: what the uppermost layer gives. Logits are computed only where replies are.
    """
    mask_BR = batch.reply_mask_BR
    states_CH = backbone.normed(hidden_CH.index_select(0, padded(batch.predicting_BR[mask_BR])), weights)
    logprobs_C: Tensor = _Chosen.apply(  # type: ignore[no-untyped-call]
        states_CH, backbone.head(weights), padded(batch.reply_ids_BR[mask_BR]), temperature
    )
    return torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(mask_BR, logprobs_C)


@torch.no_grad()
def reply_logprobs_and_entropy(
    backbone: Backbone, hidden_CH: Tensor, batch: Batch, temperature: float, weights: Weights = FROZEN
) -> tuple[Tensor, Tensor]:
    """(B, R) each: as above, and the nats of entropy of the distribution that each token was drawn from."""
    mask_BR = batch.reply_mask_BR
    states_CH = backbone.normed(hidden_CH.index_select(0, padded(batch.predicting_BR[mask_BR])), weights)
    chosen_C = padded(batch.reply_ids_BR[mask_BR])
    logprobs, entropies = [], []
    for rows, table in _tables(states_CH, backbone.head(weights), temperature):
        logprobs.append(table.gather(1, chosen_C[rows, None]).squeeze(1))
        entropies.append(-(table.exp() * table).sum(-1))
    logprobs_C, entropies_C = torch.cat(logprobs), torch.cat(entropies)
    zeros_BR = torch.zeros(mask_BR.shape, device=mask_BR.device)
    return zeros_BR.masked_scatter(mask_BR, logprobs_C), zeros_BR.masked_scatter(mask_BR, entropies_C)


@torch.no_grad()
def score_logprobs(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    temperature: float,
    weights: Weights = FROZEN,
) -> Tensor:
    """(B, R), on the CPU: the logprobs of given replies under these weights, in passes of bounded size."""
    batch = Batch.of(prompts, replies, backbone.device)
    result_BR = torch.zeros(batch.reply_mask_BR.shape, device=backbone.device)

    def score(part: Part) -> None:
        piece = part.batch
        hidden_CH = backbone.run(backbone.embed(piece, weights), piece, 0, backbone.depth, weights)
        logprobs = reply_logprobs(backbone, hidden_CH, piece, temperature, weights)
        result_BR[part.replies, : logprobs.shape[1]] = logprobs

    each_part(even_parts(batch, passes(backbone.device).scoring_tokens), score)
    return result_BR.cpu()


class _Chosen(torch.autograd.Function):
    """log softmax(x·Wᵀ / T) at one token a row, with d/dlogits = (onehot − softmax) / T.

    C rows of x, H wide; W is (V, H).
    """

    @staticmethod
    def forward(ctx: Any, states_CH: Tensor, head_VH: Tensor, chosen_C: Tensor, temperature: float) -> Tensor:
        logprobs_C, norms_C = (states_CH.new_empty(len(states_CH), dtype=precise_type(states_CH)) for _ in range(2))
        for rows in _pieces(states_CH, head_VH):
            logits = F.linear(states_CH[rows], head_VH)
            logprobs_C[rows], norms_C[rows] = chosen_logprobs(logits, chosen_C[rows], temperature)
        ctx.save_for_backward(states_CH, head_VH, chosen_C, norms_C)
        ctx.temperature = temperature
        return logprobs_C

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        states_CH, head_VH, chosen_C, norms_C = ctx.saved_tensors
        gradient_C = gradients[0].contiguous()
        for_states, for_head = ctx.needs_input_grad[:2]
        states_gradient = torch.empty_like(states_CH) if for_states else None
        head_gradient = torch.zeros_like(head_VH, dtype=precise_type(head_VH)) if for_head else None
        for rows in _pieces(states_CH, head_VH):
            logits = F.linear(states_CH[rows], head_VH)
            logits_gradient = chosen_back_(logits, chosen_C[rows], gradient_C[rows], norms_C[rows], ctx.temperature)
            if states_gradient is not None:
                states_gradient[rows] = logits_gradient @ head_VH
            if head_gradient is not None:
                head_gradient += logits_gradient.T @ states_CH[rows]
        return states_gradient, head_gradient.to(head_VH.dtype) if head_gradient is not None else None, None, None


def _pieces(states_CH: Tensor, head_VH: Tensor) -> Iterator[slice]:
    step = max(64, passes(head_VH.device).table_numbers // len(head_VH))
    return (slice(start, start + step) for start in range(0, len(states_CH), step))


def _tables(states_CH: Tensor, head_VH: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time: which they are, and their fp32 logprobs, (rows, V)."""
    for rows in _pieces(states_CH, head_VH):
        logits = precise(F.linear(states_CH[rows], head_VH)).div_(temperature)
        yield rows, logits.sub_(logits.logsumexp(-1, keepdim=True))
