"""What a command does when it is told to end: it gives back what it holds, and ends what it started."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def clean_up_when_ended() -> None:
    """From now on SIGTERM leaves through every `finally`, as Ctrl-C does; by default a process dies where it stands."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would break off the cleaning up
    sys.exit(128 + number)
