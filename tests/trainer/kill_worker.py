"""Trainings to be killed: for each folder named on standard input a child trains in it, and says so line by line.

The children are forked, so that torch is imported once. Said are `pid N`, `step N` after each iteration, whose state is
then on the disk, and by the parent `ended STATUS`.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.trainer.models import make_backbone
from tests.trainer.test_ppo import make_ppo
from trainer.checkpoint import RunFolder

CHANGES: dict[str, Any] = {
    "iterations": 80,
    "kl_target_nats": 0.1,
    "batch_size": 6,
}  # 6 of 16 prompts: the queue matters


def train(path: Path) -> None:
    """Goes on from what `path` holds, and leaves the last state in `final.pt`."""
    torch.set_num_threads(1)
    folder = RunFolder(path)
    ppo = make_ppo(make_backbone(num_hidden_layers=2), **CHANGES)
    state = folder.load_state()
    if state is not None:
        ppo.restore(state["ppo"])
    while ppo.iteration < CHANGES["iterations"]:
        ppo.step()
        folder.save_state({"ppo": ppo.state()})
        say("step", ppo.iteration)
    torch.save(ppo.state(), path / "final.pt")


def say(what: str, number: int) -> None:
    os.write(1, f"{what} {number}\n".encode())


def child(path: Path) -> None:
    status = 1
    try:
        say("pid", os.getpid())
        train(path)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        forked = os.fork()
        if forked == 0:
            child(Path(line.strip()))
        _, ended = os.waitpid(forked, 0)
        say("ended", os.waitstatus_to_exitcode(ended))
