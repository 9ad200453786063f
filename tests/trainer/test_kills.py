"""Killed at twenty random moments and started again, a training ends bit for bit where an unbroken one does."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.kill_worker import CHANGES, train

KILLS = 20
ITERATIONS = CHANGES["iterations"]


@pytest.fixture(scope="module")
def context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.kill_worker"])  # else each start imports torch anew
    return context


def started(context: Any, folder: Path) -> tuple[ForkServerProcess, Connection]:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(folder, there), daemon=True)
    process.start()
    there.close()
    return process, here


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
def test_killed_twenty_times_it_ends_bit_for_bit_where_an_unbroken_run_does(context: Any, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process, steps = started(context, whole)
    assert steps.recv() == 1
    begin = time.monotonic()
    process.join(120)
    assert process.exitcode == 0
    step_seconds = (time.monotonic() - begin) / (ITERATIONS - 1)

    rng = random.Random(0)
    kills = reached = 0
    while kills < KILLS:
        process, steps = started(context, broken)
        for _ in range(rng.randint(0, 3)):
            reached = steps.recv()
        time.sleep(rng.random() * step_seconds)  # in the middle of a step, or of writing its state
        assert process.exitcode is None, "it must still have been at work"
        process.kill()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert 5 < reached < ITERATIONS
    process, _ = started(context, broken)
    process.join(120)
    assert process.exitcode == 0

    expected = dict(leaves(torch.load(whole / "final.pt", weights_only=True)))
    found = dict(leaves(torch.load(broken / "final.pt", weights_only=True)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name
