"""Starts this process again with the shared libraries that vLLM on CPU wants loaded before anything else.

vLLM sets LD_PRELOAD for processes that it starts itself; an engine forked from this one has what this one has.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

_MARK = "KUDOS_PRELOADED"


def libraries() -> list[Path]:
    """tcmalloc as vLLM ships it and OpenMP as torch ships it; none on other platforms or builds."""
    found: list[Path] = []
    for package, patterns in (
        ("vllm", ("libs/libtcmalloc_minimal*.so*",)),
        ("torch", ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*")),
    ):
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            found += [path for pattern in patterns for path in sorted(Path(location).glob(pattern))][:1]
    return found


def restart_with_libraries() -> None:
    """Does not return where it restarts; does nothing the second time."""
    if sys.platform != "linux" or os.environ.get(_MARK):
        return
    wanted = libraries()
    if not any("tcmalloc" in path.name for path in wanted):
        return
    before = os.environ.get("LD_PRELOAD")
    os.environ[_MARK] = "1"
    os.environ["LD_PRELOAD"] = ":".join([*map(str, wanted), *([before] if before else [])])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the very command that runs now
