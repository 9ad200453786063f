"""Parts of a batch side by side: a thread for each of a few cores, and none of its operations shared between cores.

A small model's operations are short. Sharing each between all cores costs a meeting of the cores at its end, and where
another process has one of them, such as the chat server, all wait for that one. Parts that go their own way meet once.

Who does which part depends on the parts alone, and what they found is put together in their order, so the same
batch gives the same sums, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from trainer.batches import Batch, Part

R = TypeVar("R")
MOST_COPIES_BYTES = 2**28
"""Each worker sums up gradients of its own. Models for which that would take more have products that are long enough to
share."""


def workers(device: torch.device, parameters: int = 0) -> int:
    """As many as cores, where gradients of so many parameters for each of them are not too much. On a GPU, one: its
    passes come one after another in any case."""
    if device.type != "cpu":
        return 1
    cores = torch.get_num_threads()
    return max(1, min(cores, MOST_COPIES_BYTES // (4 * parameters))) if parameters else cores


def even_parts(batch: Batch, max_tokens: int, among: Tensor | None = None, parameters: int = 0) -> list[Part]:
    """Parts of at most so many positions of attention's grid, as many for each worker."""
    return batch.by_length(max_tokens, among, multiple=workers(batch.device, parameters))


def share_out(parts: Sequence[Part], parameters: int = 0) -> list[list[Part]]:
    """The parts for each worker: the largest first, each to whoever has least to do."""
    most = workers(parts[0].batch.device, parameters)
    shares: list[list[Part]] = [[] for _ in range(min(most, len(parts)))]
    loads = [0] * len(shares)
    for part in sorted(parts, key=lambda part: -len(part.tokens)):
        least = loads.index(min(loads))
        shares[least].append(part)
        loads[least] += len(part.tokens)
    return shares


def each_part(parts: Sequence[Part], work: Callable[[Part], None]) -> None:
    """`work` on every part, which writes where no other part does."""

    def share(mine: Sequence[Part]) -> None:
        for part in mine:
            work(part)

    side_by_side([partial(share, mine) for mine in share_out(parts)])


def set_cores(count: int) -> None:
    """For this thread's operations. Where vLLM runs in this process, it has put a function that does nothing in the
    place of `torch.set_num_threads`."""
    torch._C.set_num_threads(count)


def side_by_side(tasks: Sequence[Callable[[], R]]) -> list[R]:
    """What each returns, in their order. A single task has all cores, here; each of several has its share of them."""
    if len(tasks) == 1:
        return [tasks[0]()]
    cores = torch.get_num_threads()
    each, differentiates = max(1, cores // len(tasks)), torch.is_grad_enabled()

    def alone(task: Callable[[], R]) -> R:
        set_cores(each)
        with torch.set_grad_enabled(differentiates):
            return task()

    try:
        futures = [_pool().submit(alone, task) for task in tasks]
        return [future.result() for future in futures]
    finally:
        set_cores(cores)  # of this thread, and what threads to come begin with


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: each has set up its own cores and scratch memory."""
    return ThreadPoolExecutor(thread_name_prefix="trainer")
