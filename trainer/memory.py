"""How libraries that training calls deal with memory: set once, when a process begins to train.

oneDNN compiles a product for each shape that it meets, half a megabyte of code each, and packed batches come in ever
new shapes: it keeps 1,024 of them, and every thread of torch's as many handles, which hold what oneDNN has let go.

glibc gives back to the system what a part of a batch has freed, and the next part asks for it again, a page fault for
each 4 KiB: it is told to keep it. Its heap for each thread is left alone: a single one for all took 60 MiB less and an
eighth more time.
"""

from __future__ import annotations

import ctypes
import os

COMPILED_PRODUCTS = 128
"""Enough for an iteration's epochs to meet again what the first one compiled."""

KEPT = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**30),  # as much as is free at the end of a heap
    "MALLOC_TOP_PAD_": (-2, 2**26),  # a heap of another thread's, which has 64 MiB, though all of it is free
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),  # a tensor that could have a mapping of its own
}
"""Up to how many bytes glibc keeps: by its variable, with malloc.h's number for each."""


def set_up_memory() -> None:
    """For this process, before torch computes anything. Whoever has set one of these variables knows better."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED_PRODUCTS))
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's handles; to find one in oneDNN's cache costs nothing
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    for variable, (option, count) in KEPT.items():
        if set_option is not None and variable not in os.environ:
            set_option(option, count)
