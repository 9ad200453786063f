"""RMSNorm on CPU by the kernel that vLLM 0.32 has and does not use: it spells the norm in six operations of torch.

A decoding step of a small model has so few numbers in each that starting them is what takes the time: a fifth of a
step. The kernel multiplies by the weight in fp32, before it rounds, where the six round twice.

vLLM loads this as a plugin, as it does `server.cpu_lora`. On other platforms it does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def install() -> None:
    """Put the kernel where vLLM's layer looks for what is special to CPUs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.layernorm import RMSNorm

    RMSNorm.forward_cpu = rms_norm


def rms_norm(layer: Any, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """w · (x + residual) / rms(x + residual), and that sum, which go to where x and residual were, as on a GPU; without
    a residual, w · x / rms(x)."""
    import torch

    weight = layer.weight.data
    plain = layer.has_weight and layer.variance_size_override is None and weight.dtype == x.dtype
    if not plain or not x.is_contiguous() or (residual is not None and not residual.is_contiguous()):
        found: Tensor | tuple[Tensor, Tensor] = layer.forward_native(x, residual)
        return found
    if residual is None:
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight, layer.variance_epsilon)
        return out
    torch.ops._C.fused_add_rms_norm(x, residual, weight, layer.variance_epsilon)
    return x, residual
