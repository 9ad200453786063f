"""Servers of their own for a bench: started on a free port, waited for, ended by their id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import httpx
from rich.console import Console

START_SECONDS = 300.0


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    module: str, arguments: Sequence[str], *, port: int, health: str, log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Yields the server's address when `health` answers 200."""
    address = f"http://127.0.0.1:{port}"
    console = Console(stderr=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with console.status(f"starting {module}"):
            deadline = time.monotonic() + START_SECONDS
            while not _answers(address + health):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{module} did not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def kudos(home: Path, **settings: str) -> Iterator[str]:
    """`kudos serve` with one thread for the engine, as a machine of two cores has it by default."""
    port = free_port()
    environment = {
        "KUDOS_HOME": str(home),
        "KUDOS_PORT": str(port),
        "KUDOS_ENGINE_THREADS": "1",
        "KUDOS_KV_CACHE_GIB": "1",
        "KUDOS_MAX_STREAMS_PER_USER": "512",
        **settings,
    }
    with running(
        "kudos", ["serve"], port=port, health="/health/ready", log=home / "serve.log", environment=environment
    ) as address:
        yield address


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
