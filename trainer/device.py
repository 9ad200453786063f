"""Where training runs, and how much of a batch goes through it at once.

On a CPU several passes run side by side (`trainer.workers`), and what they keep is bounded; each that goes backwards
adds up gradients of all weights, so that few are better than many.
On a GPU passes run one after another, each large enough to fill it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from trainer.errors import NoSuchDevice


class Passes(NamedTuple):
    learning_tokens: int
    """Positions of attention's grid in a pass that goes backwards."""

    scoring_tokens: int
    """The same, where no gradient is kept."""

    table_numbers: int
    """Of one piece of the table of logits."""


CPU = Passes(learning_tokens=1536, scoring_tokens=1024, table_numbers=2**19)
GPU = Passes(learning_tokens=8192, scoring_tokens=16384, table_numbers=2**26)


def passes(device: torch.device) -> Passes:
    return CPU if device.type == "cpu" else GPU


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises NoSuchDevice."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise NoSuchDevice(
            f"the training config asks for the device {name!r}, and torch {torch.__version__} finds no GPU: "
            "set device to cpu or auto, or install torch for CUDA"
        )
    return torch.device(name)
