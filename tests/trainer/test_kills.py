"""Killed at twenty random moments and started again, a training ends bit for bit where an unbroken one does: the loop
of PPO, and a whole run with all of its stages."""

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
from sqlmodel import select
from torch import Tensor

from feedback.schema import RunState, TrainingRun
from feedback.settings import Settings
from feedback.store import open_store
from tests.trainer.kill_worker import CHANGES
from tests.trainer.models import make_model_folder, make_tokenizer
from tests.trainer.votes import write_votes
from trainer.progress import STAGES

KILLS = 20
ITERATIONS = CHANGES["iterations"]


class Trainings:
    """The process that forks a training for each folder."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.trainer.kill_worker"]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def start(self, folder: Path, what: str = "ppo") -> int:
        """The child's process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {folder}\n")
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


def _learned(home: Path) -> dict[str, bytes]:
    """The weights of every reward model and policy in a home folder."""
    found = [*home.glob("policies/v*/adapter_model.safetensors"), *home.glob("runs/*/*/reward_model.safetensors")]
    return {"/".join(path.parts[-2:]) if "runs" in path.parts else path.name: path.read_bytes() for path in found}


def _has_ended(home: Path) -> bool:
    """A run may be told to be over and its process still be on its way out."""
    store = open_store(Settings(home=home, database_url=None))
    try:
        with store.read() as session:
            return session.exec(select(TrainingRun.state)).first() == RunState.SUCCEEDED
    finally:
        store.close()


@pytest.mark.slow
def test_killed_twenty_times_in_all_stages_a_run_publishes_what_an_unbroken_one_does(
    trainings: Trainings, tmp_path: Path
) -> None:
    make_model_folder(tmp_path / "model")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    store = open_store(Settings(home=whole, database_url=None))
    write_votes(store, make_tokenizer(), pairs=40, thumbs=40, prompts=40, corrections=True)
    store.close()
    shutil.copytree(whole, broken)

    trainings.start(whole, "run")
    seconds: dict[int, float] = {}
    begin, stage = time.monotonic(), None
    while True:
        what, number = trainings.hear()
        if stage is not None:
            seconds[stage] = time.monotonic() - begin
        if what == "ended":
            assert number == 0
            break
        begin, stage = time.monotonic(), number
    stages = sorted(seconds)
    assert [list(STAGES)[number] for number in stages] == list(STAGES), "a stage was left out"

    rng = random.Random(0)
    for kill in range(KILLS):
        target = stages[kill % len(stages)]
        before = tmp_path / "before"
        shutil.copytree(broken, before)
        while True:
            pid = trainings.start(broken, "run")
            heard = trainings.hear()
            while heard[0] == "step" and heard[1] < target:
                heard = trainings.hear()
            time.sleep(rng.random() * seconds[target])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            status = heard[1] if heard[0] == "ended" else trainings.end()[0]
            if status == -signal.SIGKILL and not _has_ended(broken):
                break
            assert status in {0, -signal.SIGKILL}
            # Where the test itself was paused, the run came to its end: the same life again.
            shutil.rmtree(broken)
            shutil.copytree(before, broken)
        shutil.rmtree(before)
    trainings.start(broken, "run")
    status, _ = trainings.end()
    assert status == 0

    expected, found = _learned(whole), _learned(broken)
    assert {name.split("/")[0] for name in expected} == {"adapter_model.safetensors", "reward_model", "judge"}
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    left = [path.name for path in (broken / "policies").iterdir() if path.is_dir()]
    assert len(left) == 1, "of those that died while they published, nothing stays"
