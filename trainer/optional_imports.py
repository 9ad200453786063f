"""What other libraries load when it is installed and do without when it is not, and no training here calls.

Together it takes more memory than everything that PPO keeps of kudos-tiny: 160 MiB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

UNCALLED = (
    "cv2",  # vLLM's videos
    "opentelemetry",  # vLLM's traces
    "scipy.signal",  # vLLM's sounds
    "scipy.stats",  # nltk's
)
UNCALLED_ON_CPU = ("triton",)  # GPU kernels


@contextmanager
def without_optional() -> Iterator[None]:
    """Within, importing these libraries fails as if they were not installed. Afterwards whoever wants one has it."""
    hidden = UNCALLED if torch.cuda.is_available() else UNCALLED + UNCALLED_ON_CPU
    modules = cast("dict[str, Any]", sys.modules)
    before = {name: modules[name] for name in hidden if name in modules}
    modules.update(dict.fromkeys(hidden))  # Python takes None for: not to be found
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
        modules.update(before)
