"""Memory that libraries would keep for ever: set once, when a process begins to train.

oneDNN compiles a product for each shape that it meets, half a megabyte of code each, and packed batches come in ever
new shapes: it keeps 1,024 of them, and every thread of torch's as many handles, which hold what oneDNN has let go. And
glibc gives each thread a heap of its own, where what one has freed serves no other.
"""

from __future__ import annotations

import ctypes
import os

M_ARENA_MAX = -8  # malloc.h
COMPILED_PRODUCTS = 128
"""Enough for an iteration's epochs to meet again what the first one compiled."""


def keep_memory_small() -> None:
    """For this process, before torch computes anything. Whoever has set one of these variables knows better."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED_PRODUCTS))
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's handles; to find one in oneDNN's cache costs nothing
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if set_option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        set_option(M_ARENA_MAX, 1)
