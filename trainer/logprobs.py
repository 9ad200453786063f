"""The logprobs of replies: one function reads them, for training, evaluation and the proof that goes with a policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.backbone import FROZEN, Backbone, Weights
from trainer.batches import Batch

SCORING_TOKENS = 4096
"""Positions of one pass where no gradient is kept."""


def reply_logprobs(
    backbone: Backbone, hidden_CH: Tensor, batch: Batch, temperature: float, weights: Weights = FROZEN
) -> tuple[Tensor, Tensor]:
    """fp32 logprobs of the replies' tokens at this temperature, and the (detached) entropy per token; both (B, R).

    hidden_CH: what the uppermost layer gives. Logits are computed only where replies are.
    """
    mask_BR = batch.reply_mask_BR
    normed_CH = backbone.normed(hidden_CH[batch.predicting_BR[mask_BR]], weights)
    logprobs_CV = torch.log_softmax(backbone.logits(normed_CH, weights) / temperature, dim=-1)
    chosen_C = logprobs_CV.gather(1, batch.reply_ids_BR[mask_BR][:, None]).squeeze(1)
    with torch.no_grad():
        entropy_C = -(logprobs_CV.exp() * logprobs_CV).sum(-1)
    zeros = torch.zeros(mask_BR.shape)
    return zeros.masked_scatter(mask_BR, chosen_C), zeros.masked_scatter(mask_BR, entropy_C)


@torch.no_grad()
def score_logprobs(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    temperature: float,
    weights: Weights = FROZEN,
) -> Tensor:
    """(B, R): the logprobs of given replies under these weights, in passes of bounded size."""
    batch = Batch.of(prompts, replies)
    result_BR = torch.zeros(batch.reply_mask_BR.shape)
    for part in batch.by_length(SCORING_TOKENS):
        piece = part.batch
        hidden_CH = backbone.run(backbone.embed(piece, weights), piece, 0, backbone.depth, weights)
        logprobs, _ = reply_logprobs(backbone, hidden_CH, piece, temperature, weights)
        result_BR[part.replies, : logprobs.shape[1]] = logprobs
    return result_BR
