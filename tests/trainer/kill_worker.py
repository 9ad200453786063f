"""Trainings to be killed: for each folder named on standard input a child trains in it, and says so line by line.

Named are `ppo FOLDER`, for the loop alone, or `run HOME`, for a whole run as `kudos train` does it. The children are
forked, so that torch is imported once. Said are `pid N`, `step N` after each iteration of the loop, whose state is then
on the disk, or as each stage of the run begins, and by the parent `ended STATUS`.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401 - what a child would import anew in each life
import torch
from rich.console import Console
from sqlmodel import select

from feedback.schema import Lease, TrainingRun, now
from feedback.settings import Settings
from feedback.store import open_store
from tests.trainer.models import make_backbone
from tests.trainer.test_ppo import make_ppo
from tests.trainer.test_run import QUICK, QuickSampler
from trainer.checkpoint import RunFolder
from trainer.config import TrainingConfig
from trainer.progress import STAGES
from trainer.run import TrainingRunner

RUN = TrainingConfig.model_validate(
    QUICK.model_dump()
    | {"min_votes": 30, "sft": {"epochs": 1}, "evaluation": {"prompts": 8, "judge_votes": 5}}
    | {"reward_model": QUICK.reward_model.model_dump() | {"epochs": 1}}
    | {"ppo": QUICK.ppo.model_dump() | {"iterations": 3}}
)
"""Small, with every stage: corrections to imitate, and a second judge."""
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


class Stages(io.StringIO):
    """A run's console. Says the number of each stage as it begins."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            name = line.partition(":")[0]
            if name in STAGES and name != self.last:
                self.last = name
                say("step", list(STAGES).index(name))
        return len(text)

    last = ""


def run(home: Path) -> None:
    """The run that is in this home folder, or a new one."""
    settings = Settings(home=home, database_url=None)
    store = open_store(settings)
    with store.write() as session:
        found = session.exec(select(TrainingRun.id)).first()
        for lease in session.exec(select(Lease)):
            lease.expires_at = now()  # a minute and a half have passed
            session.add(lease)
    console = Console(file=Stages(), width=1000)
    TrainingRunner(settings, store, RUN, home.parent / "model", console, sampler=QuickSampler).run(found)
    store.close()


def say(what: str, number: int) -> None:
    os.write(1, f"{what} {number}\n".encode())


def child(what: str, path: Path) -> None:
    status = 1
    try:
        say("pid", os.getpid())
        {"ppo": train, "run": run}[what](path)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        forked = os.fork()
        if forked == 0:
            what, path = line.split()
            child(what, Path(path))
        _, ended = os.waitpid(forked, 0)
        say("ended", os.waitstatus_to_exitcode(ended))
