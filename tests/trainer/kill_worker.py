"""A training that saves its state after every iteration and says so: to be killed, and started again."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.trainer.models import make_backbone
from tests.trainer.test_ppo import make_ppo
from trainer.checkpoint import RunFolder

CHANGES: dict[str, Any] = {
    "iterations": 40,
    "kl_target_nats": 0.1,
    "batch_size": 6,
}  # 6 of 16 prompts: the queue matters


def train(path: Path, steps: Connection) -> None:
    """Goes on from what `path` holds; tells of each iteration, and leaves the last state in `final.pt`."""
    torch.set_num_threads(1)
    folder = RunFolder(path)
    ppo = make_ppo(make_backbone(num_hidden_layers=2), **CHANGES)
    state = folder.load_state()
    if state is not None:
        ppo.restore(state["ppo"])
    while ppo.iteration < CHANGES["iterations"]:
        ppo.step()
        folder.save_state({"ppo": ppo.state()})
        steps.send(ppo.iteration)
    torch.save(ppo.state(), path / "final.pt")
