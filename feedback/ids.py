"""Identifiers: time-ordered, so that indexes stay compact and rows sort by age; 128 bits, so that nobody guesses one.

48 bits of milliseconds, then 80 random bits, of which the first are counted up within one millisecond: two ids from
one process never compare in the wrong order. Not a UUID: version bits would cost randomness and no reader needs them.
"""

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

_lock = threading.Lock()
_last = 0
_STEP = 2**64 - 1


def new_id(prefix: str) -> str:
    """`prefix` and 32 hexadecimal digits: `chatcmpl-0199...`."""
    global _last  # noqa: PLW0603 - order within the process is the point
    drawn = secrets.randbits(80)  # once: while the kernel draws, another thread takes Python's lock
    value = (time.time_ns() // 1_000_000) << 80 | drawn
    with _lock:
        if value >> 80 <= _last >> 80:  # the same millisecond, or a clock that was set back
            value = _last + 1 + (drawn & _STEP)
        _last = value
    return f"{prefix}-{value:032x}"


def prompt_digest(messages: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of the messages, whatever the order of their keys. Data is split by it."""
    canonical = json.dumps(list(messages), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
