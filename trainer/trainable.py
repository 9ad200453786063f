"""Weights that training changes, over the frozen ones that they start from. `trainer.lora` has the low-rank kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from trainer.backbone import FROZEN, Backbone, Weights
from trainer.batches import Part
from trainer.fused import accumulate_, precise
from trainer.workers import share_out, side_by_side

R = TypeVar("R")


class Trainable(nn.Module, ABC):
    """A policy's or a critic's weights. The matrices are kept in fp32 and run in the backbone's type."""

    first: int
    """The lowest layer that they touch; 0 for the embeddings too."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple, so that the frozen weights are not this module's own

    @abstractmethod
    def exact(self) -> dict[str, Tensor]:
        """The weights in fp32, by name below `model.`; differentiable in the parameters."""

    def merged(self) -> dict[str, Tensor]:
        """The weights as they run; differentiable in the parameters."""
        dtype = self._backbone[0].dtype
        return {name: exact.to(dtype) for name, exact in self.exact().items()}

    def merged_once(self, copies: int = 1) -> AbstractContextManager[list[dict[str, Tensor]]]:
        """Merged weights to go backwards through any number of times: see `leaves`."""
        dtype = self._backbone[0].dtype
        return leaves(self.exact(), dtype, copies)

    def round_to_served(self) -> None:
        """Round to bf16 in place, so that what is measured now is what will be served."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))


@contextmanager
def leaves(exact: Mapping[str, Tensor], dtype: torch.dtype | None, copies: int) -> Iterator[list[dict[str, Tensor]]]:
    """Tensors to go backwards through any number of times, as `dtype` (unset: their own). Gradients add up in fp32 (a
    single one stays as it comes), and the way on to what the tensors are made of is taken once, at the end.

    copies: for as many threads. They share their numbers, and each adds up its own gradients, so that the order of
    sums, and with it their last bit, is always the same.
    """
    run = {name: tensor.detach().to(dtype or tensor.dtype, copy=True) for name, tensor in exact.items()}
    totals: list[dict[str, Tensor]] = [{} for _ in range(copies)]

    def leaf(name: str, total: dict[str, Tensor]) -> Tensor:
        def collect(copy: Tensor) -> None:
            assert copy.grad is not None
            total[name] = accumulate_(precise(total[name]), copy.grad) if name in total else copy.grad
            copy.grad = None

        copy = run[name].detach().requires_grad_()
        copy.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
        return copy

    yield [{name: leaf(name, total) for name in exact} for total in totals]
    summed, *others = totals
    for other in others:
        while other:
            name, gradient = other.popitem()
            summed[name] = precise(summed[name]).add_(gradient) if name in summed else gradient
    for name in [name for name in summed if exact[name].is_leaf and exact[name].grad is None]:
        exact[name].grad = precise(summed.pop(name))  # autograd would make a copy
    torch.autograd.backward([exact[name] for name in summed], [precise(total) for total in summed.values()])


class Learner(Protocol):
    """A policy or a critic: whoever has weights that learn."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def merged_once(self, copies: int) -> AbstractContextManager[Sequence[Weights]]: ...


def size(learner: Learner) -> int:
    """Its parameters' numbers."""
    return sum(parameter.numel() for parameter in learner.parameters())


def differentiate(parts: Sequence[Part], learner: Learner, work: Callable[[Part, Weights], R]) -> list[R]:
    """`work` on every part, side by side: it goes backwards from a loss under the weights that it is given. Leaves the
    sum of the learner's gradients, which must have none yet, and returns what the parts return."""
    assert all(parameter.grad is None for parameter in learner.parameters()), "gradients of an earlier step"
    shares = share_out(parts, size(learner))

    def each(mine: Sequence[Part], weights: Weights) -> list[R]:
        return [work(part, weights) for part in mine]

    with learner.merged_once(len(shares)) as copies:
        found = side_by_side([partial(each, mine, weights) for mine, weights in zip(shares, copies, strict=True)])
    return [result for results in found for result in results]


class FullWeights(Trainable):
    """Every weight of the backbone, its embeddings, norms and biases too."""

    first = 0

    def __init__(self, backbone: Backbone, start: Weights = FROZEN) -> None:
        """start: weights to begin with in place of the frozen ones."""
        super().__init__(backbone)
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(precise(start.get(name, frozen).detach()).clone())
                for name, frozen in backbone.weights().items()
            }
        )

    def exact(self) -> dict[str, Tensor]:
        return {key.replace("/", "."): parameter for key, parameter in self.weights.items()}
