"""Which engine gives a run its fresh replies: vLLM where it is installed, else transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from trainer.sampler import Sampler
from trainer.transformers_sampler import TransformersSampler


def make_sampler(
    folder: Path, device: torch.device, *, end_id: int, max_model_len: int, sequences: int = 256
) -> Sampler | TransformersSampler:
    """device: of the weights that are being trained. sequences: how many replies to make room for.

    vLLM runs on the device that it was built for, whatever trains.
    """
    if find_spec("vllm"):
        return Sampler(folder, end_id=end_id, max_model_len=max_model_len, sequences=sequences)
    return TransformersSampler(folder, end_id=end_id, max_model_len=max_model_len, sequences=sequences, device=device)
