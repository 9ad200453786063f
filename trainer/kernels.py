"""`kernels.c`, compiled by the machine's own C compiler when it is first needed: a second, once a process.

The functions use one core and know bf16 alone. Where there is no compiler, or a thread has several cores, or the type
is another one, `fit` says no, and the caller does the same with torch.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    # What lets sums be reordered and so vectorised, and no more: -ffast-math would change how the whole process treats
    # numbers near zero.
    *("-std=c11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    *("-fassociative-math", "-freciprocal-math", "-shared", "-fPIC"),
)
X86_FLAGS = ("-mprefer-vector-width=512", "-mrecip=all")


@cache
def library() -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        logger.info("no C compiler: training runs on torch's own operations, and takes longer")
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "kernels.so"
        more = X86_FLAGS if platform.machine() == "x86_64" else ()
        command = [compiler, *FLAGS, *more, str(SOURCE), "-o", str(built), "-lm"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own source
        try:
            return ctypes.CDLL(str(built))
        except OSError:  # it did not compile, or the folder allows no code
            logger.warning("%s could not build %s: training is slower\n%s", compiler, SOURCE.name, ended.stderr[-500:])
            return None


def fit(x: Tensor) -> bool:
    """Whether the functions serve for tensors such as this one, in this thread."""
    return x.dtype is torch.bfloat16 and x.is_cpu and torch.get_num_threads() == 1 and library() is not None


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Tensors go as pointers to their (contiguous) numbers, None as a null pointer."""
    found = library()
    assert found is not None
    function = getattr(found, name)
    function.restype = None
    function(*map(_argument, arguments))


def _argument(value: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
