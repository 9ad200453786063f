"""Adapters on CPU, in groups: what vLLM 0.32 does with a copy of an adapter for every token.

vLLM's own functions gather each token's matrices before they multiply, so a step moves tokens · rank · width numbers
through memory, and a few hundred prompt tokens stop every stream for most of a second. Here the rows of one adapter
are one product, and which rows those are is found once for a batch, not once for each matrix. And a row without an
adapter is left alone: vLLM gives it slot −1, which on CPU reads the last slot, whatever adapter lies there.

vLLM loads this as a plugin (`vllm.general_plugins` in pyproject.toml) in every process of an engine. On other
platforms it does nothing. Adapters sit on linear layers alone (`lora_target_modules`), so nothing else is replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def install() -> None:
    """Put the wrapper where vLLM looks for the one for CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    class GroupedAdapters(punica_cpu.PunicaWrapperCPU):  # type: ignore[misc]  # vLLM has no types
        """The adapters of one batch; vLLM calls `update_metadata` whenever another batch comes."""

        groups: list[tuple[int, Tensor | None]] = []  # noqa: RUF012 -- replaced, never changed

        def update_metadata(self, *args: Any, **kwargs: Any) -> None:
            super().update_metadata(*args, **kwargs)
            self.groups = groups_of(self.token_lora_indices)

        def add_lora_linear(  # noqa: PLR0917 -- vLLM's signature
            self,
            y: Tensor,
            x: Tensor,
            lora_a_stacked: tuple[Tensor, ...],
            lora_b_stacked: tuple[Tensor, ...],
            scale: float,
            output_slices: tuple[int, ...],
            **_: Any,
        ) -> None:
            add_adapters(self.groups, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)

    punica_cpu.PunicaWrapperCPU = GroupedAdapters


def groups_of(slots: Tensor) -> list[tuple[int, Tensor | None]]:
    """Each adapter in a batch with its rows; None stands for all of them. slots: (tokens,), −1 without an adapter."""
    found = sorted(set(slots.tolist()))
    if len(found) == 1:
        return [(found[0], None)] if found[0] >= 0 else []
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in found if slot >= 0]


def add_adapters(  # noqa: PLR0917 -- as vLLM calls it
    groups: list[tuple[int, Tensor | None]],
    y: Tensor,
    x: Tensor,
    a: tuple[Tensor, ...],
    b: tuple[Tensor, ...],
    scale: float,
    widths: tuple[int, ...],
) -> None:
    """y += scale · x · Aᵀ · Bᵀ in place, row by row with the row's own adapter.

    x: (tokens, inputs); y: (tokens, outputs), whose columns are those of one B after another, `widths` of each. Each A
    is (slots, 1, rank, inputs) and each B (slots, 1, outputs, rank).
    """
    for slot, rows in groups:
        chosen = x if rows is None else x.index_select(0, rows)
        start = 0
        for down, up, width in zip(a, b, widths, strict=True):
            columns = y.narrow(1, start, width)
            inner, outer = chosen @ down[slot, 0].T, up[slot, 0].T
            if rows is None:
                columns.addmm_(inner, outer, alpha=scale)
            else:
                columns.index_add_(0, rows, inner @ outer, alpha=scale)
            start += width
