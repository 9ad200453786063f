"""Weights that training changes, over the frozen ones that they start from. `trainer.lora` has the low-rank kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.backbone import FROZEN, Backbone, Weights, precise


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

    @contextmanager
    def merged_once(self) -> Iterator[dict[str, Tensor]]:
        """Merged weights to go backwards through any number of times. Their gradients add up in fp32, and the way on to
        the parameters is taken once, at the end."""
        exact = self.exact()
        dtype = self._backbone[0].dtype
        total: dict[str, Tensor] = {}

        def leaf(name: str, weight: Tensor) -> Tensor:
            def collect(copy: Tensor) -> None:
                assert copy.grad is not None
                total[name] = total[name].add_(copy.grad) if name in total else precise(copy.grad)
                copy.grad = None

            copy = weight.detach().to(dtype, copy=True).requires_grad_()
            copy.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
            return copy

        yield {name: leaf(name, weight) for name, weight in exact.items()}
        torch.autograd.backward([exact[name] for name in total], list(total.values()))

    def round_to_served(self) -> None:
        """Round to bf16 in place, so that what is measured now is what will be served."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))


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
