"""How likely the frozen model finds a reply's tokens: columns that the reward model's heads read beside its states.

A hidden state foretells the next token and says little of how well its own was foretold; a small model's says next to
nothing. Yet that is where a reply beside the point shows: it is unlikely after its prompt, somewhere. Both columns are
causal, as the states are, so that every position has a score. The heads' weights of them start at 0.

Shapes: B replies, R tokens of the longest one, C tokens that are read, F columns (see `trainer.batches`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.batches import Batch

COLUMNS = 2
UNITS_PER_NAT = 4.0
"""How large a column is decides how fast it is learned: Adam moves all weights alike."""
LEAST_NATS = -12.0
"""Unlikelier than this is all the same, or one token would outweigh the rest of a reply."""


def surprise(logprobs_BR: Tensor, batch: Batch) -> Tensor:
    """(C, F): of each token of a reply its logprob, and the lowest of the reply up to it; 0 for the prompt's end.

    logprobs_BR: by the frozen model, at temperature 1.
    """
    mask_BR = batch.reply_mask_BR
    logprobs_BR = logprobs_BR.clamp_min(LEAST_NATS) * UNITS_PER_NAT
    columns_BRF = torch.stack([logprobs_BR, logprobs_BR.cummin(dim=1).values], dim=2)
    result_CF = logprobs_BR.new_zeros(len(batch.read_C), COLUMNS)
    result_CF[batch.token_BR[mask_BR]] = columns_BRF[mask_BR]
    return result_CF
