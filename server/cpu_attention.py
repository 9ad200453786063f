"""Attention on CPU by a plain call, where vLLM 0.32 goes through torch's dispatcher.

The dispatcher is there for torch.compile, which must not look inside. Where nothing is compiled, its two calls in each
layer are a twentieth of what a step of a small model takes for one stream, and a fortieth for 64.

vLLM loads this as a plugin, as it does `server.cpu_lora`. On other platforms, and where torch may compile, it does
nothing.
"""

from __future__ import annotations

import os


def install() -> None:
    """Tell vLLM's layers, as they are made, that its attention need not be hidden."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        type(current_platform).opaque_attention_op = classmethod(lambda _: False)
