"""Adapters on CPU, row by row grouped: what vLLM 0.32 does with a copy of an adapter for every token.

vLLM's own functions gather each token's matrices before they multiply, so a step moves tokens · rank · width numbers
through memory, and a few hundred prompt tokens stop every stream for most of a second. Here the rows of one adapter
are one product. And a row without an adapter is left alone: vLLM gives it slot −1, which on CPU reads the last slot,
whatever adapter lies there.

vLLM loads this as a plugin (`vllm.general_plugins` in pyproject.toml) in every process of an engine. On other
platforms it does nothing.

Shapes: T tokens, I inputs, O outputs, S slots for adapters; weights are (S, 1, O, I) or (S, O, I).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def install() -> None:
    """Replace the functions where vLLM's wrapper for CPU looks them up."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    for function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice, sgmv_shrink, sgmv_expand, sgmv_expand_slice):
        setattr(punica_cpu, function.__name__, function)


def bgmv_shrink(inputs_TI: Tensor, weights: Tensor, output_TO: Tensor, slots_T: Tensor, scaling: float = 1.0) -> None:
    """output = scaling · inputs · Aᵀ, in the output's precision."""
    for rows, product in _products(inputs_TI, weights, slots_T, output_TO.dtype):
        output_TO[rows, : product.shape[1]] = scaling * product


def bgmv_expand(
    inputs_TI: Tensor, weights: Tensor, output_TO: Tensor, slots_T: Tensor, add_inputs: bool = True
) -> None:
    """output += inputs · Bᵀ; model and adapter may pad their outputs differently."""
    width = min(weights.shape[-2], output_TO.shape[1])
    bgmv_expand_slice(inputs_TI, weights[..., :width, :], output_TO, slots_T, 0, width, add_inputs)


def bgmv_expand_slice(  # noqa: PLR0917 -- vLLM's signature
    inputs_TI: Tensor,
    weights: Tensor,
    output_TO: Tensor,
    slots_T: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """The same for some columns of the output."""
    columns = slice(slice_offset, slice_offset + slice_size)
    for rows, product in _products(inputs_TI, weights, slots_T, output_TO.dtype):
        if add_inputs:
            output_TO[rows, columns] += product
        else:
            output_TO[rows, columns] = product


# A prefill names the slot of each sequence, and how long it is.


def sgmv_shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, _starts: Tensor, lengths: Tensor, slots: Tensor, *rest: Any
) -> None:
    *_sizes, scaling = rest
    bgmv_shrink(inputs, weights, output, slots.repeat_interleave(lengths), scaling)


def sgmv_expand(
    inputs: Tensor, weights: Tensor, output: Tensor, _starts: Tensor, lengths: Tensor, slots: Tensor, *rest: Any
) -> None:
    *_sizes, add_inputs = rest
    bgmv_expand(inputs, weights, output, slots.repeat_interleave(lengths), add_inputs)


def sgmv_expand_slice(
    inputs: Tensor, weights: Tensor, output: Tensor, _starts: Tensor, lengths: Tensor, slots: Tensor, *rest: Any
) -> None:
    *_sizes, slice_offset, slice_size, add_inputs = rest
    bgmv_expand_slice(inputs, weights, output, slots.repeat_interleave(lengths), slice_offset, slice_size, add_inputs)


def _products(
    inputs_TI: Tensor, weights: Tensor, slots_T: Tensor, dtype: Any
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """For each adapter in the batch: its rows, and their product with its matrix."""
    lowest, highest = int(slots_T.min()), int(slots_T.max())
    for slot in range(max(lowest, 0), highest + 1):
        rows: slice | Tensor = slice(None) if lowest == highest else (slots_T == slot).nonzero().squeeze(1)
        chosen = inputs_TI[rows]
        if len(chosen):
            yield rows, chosen.to(dtype) @ weights[slot].reshape(weights.shape[-2:]).to(dtype).T
