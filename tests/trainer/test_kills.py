"""Killed at twenty random moments and started again, a training ends bit for bit where an unbroken one does."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.kill_worker import CHANGES

KILLS = 20
ITERATIONS = CHANGES["iterations"]


class Trainings:
    """The process that forks a training for each folder."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.trainer.kill_worker"]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def start(self, folder: Path) -> int:
        """The child's process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        what, number = self.hear()
        assert what == "pid"
        return number

    def hear(self) -> tuple[str, int]:
        assert self.process.stdout is not None
        what, number = self.process.stdout.readline().split()
        return what, int(number)

    def end(self) -> tuple[int, int]:
        """Waits for the child: its exit status, and the last step that was told meanwhile (0: none)."""
        step = 0
        while True:
            what, number = self.hear()
            if what == "ended":
                return number, step
            step = number


@pytest.fixture
def trainings() -> Iterator[Trainings]:
    found = Trainings()
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    assert found.process.wait(30) == 0


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, f"{name}/{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from leaves(value, f"{name}/{index}")
    else:
        yield name, state


@pytest.mark.slow
def test_killed_twenty_times_it_ends_bit_for_bit_where_an_unbroken_run_does(
    trainings: Trainings, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trainings.start(whole)
    assert trainings.hear() == ("step", 1)
    begin = time.monotonic()
    status, _ = trainings.end()
    assert status == 0
    step_seconds = (time.monotonic() - begin) / (ITERATIONS - 1)

    rng = random.Random(0)
    reached = 0
    broken.mkdir()
    for _ in range(KILLS):
        steps, pause = rng.randint(0, 3), rng.random() * step_seconds
        before = tmp_path / "before"
        shutil.copytree(broken, before)
        while True:
            pid, heard = trainings.start(broken), reached
            for _ in range(steps):
                what, heard = trainings.hear()
                assert what == "step"
            time.sleep(pause)  # in the middle of a step, or of writing its state
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            status, further = trainings.end()
            if status == -signal.SIGKILL and further <= heard + 2:
                break
            # Where the test itself was paused, the training ran on: the same life again, or none would be left to kill.
            shutil.rmtree(broken)
            shutil.copytree(before, broken)
        reached = max(heard, further)
        shutil.rmtree(before)
    assert 5 < reached < ITERATIONS
    trainings.start(broken)
    status, _ = trainings.end()
    assert status == 0

    expected = dict(leaves(torch.load(whole / "final.pt", weights_only=True)))
    found = dict(leaves(torch.load(broken / "final.pt", weights_only=True)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name
