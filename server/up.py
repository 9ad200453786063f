"""`kudos up`: the server, and a trainer beside it at a lower priority. Starts both, watches both, ends both.

The supervisor holds no model and answers nobody: should it be killed, its children are told by the kernel.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.settings import Settings

READY = re.compile(r"kudos is ready: (http://\S+)")

_NICE = 10
_IONICE_IDLE = 3 << 13  # class "idle" for ioprio_set: the trainer's checkpoints never delay a vote's fsync
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2
_BACKOFF_SECONDS = (1.0, 5.0, 30.0, 120.0)
_CALM_SECONDS = 300.0  # a trainer that ran this long counts as recovered
_SERVER_GRACE_SECONDS = 40.0  # beyond its own draining
_TRAINER_GRACE_SECONDS = 20.0


@dataclass
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started_at: float


class Supervisor:
    def __init__(self, settings: Settings, *, trainer: bool = True) -> None:
        from rich.console import Console

        self._settings = settings
        self._with_trainer = trainer
        self._console = Console(stderr=True)
        self._stopping: int | None = None
        self._server: Child | None = None
        self._trainer: Child | None = None
        self._told = 0  # bytes of the trainer's log that were looked at
        self._deaths = 0
        self._start_trainer_at: float | None = None

    def run(self) -> int:
        """Returns the exit status: 0 after a signal, the server's own when it ended by itself."""
        settings = self._settings
        settings.logs_folder.mkdir(parents=True, exist_ok=True)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._server = self._start("server", ["serve"], _die_with_parent)
            if not self._wait_until_ready():
                return self._end()
            if self._with_trainer:
                self._start_trainer_at = time.monotonic()
            return self._watch()
        finally:
            self._end()
            for number, handler in previous.items():
                signal.signal(number, handler)

    # ---- phases ------------------------------------------------------------------------------------

    def _wait_until_ready(self) -> bool:
        assert self._server is not None
        path = self._log_path("server")
        text = f"loading {self._settings.model_name} (about half a minute; log: {path})"
        with self._console.status(text) if self._console.is_terminal else nullcontext():
            if not self._console.is_terminal:
                self._say(text)
            while self._stopping is None and self._server.process.poll() is None:
                found = READY.search(path.read_text(errors="replace"))
                if found:
                    self._say_ready(found[1])
                    return True
                time.sleep(_POLL_SECONDS)
        if self._stopping is None:
            self._say(f"[red]the server ended with status {self._server.process.returncode}[/]; its last words:")
            for line in path.read_text(errors="replace").splitlines()[-15:]:
                self._console.print(f"  {line}", markup=False, highlight=False)
        return False

    def _say_ready(self, address: str) -> None:
        print(f"kudos is ready: {address}", flush=True)
        if self._settings.on_loopback:
            self._say(f"for operators: {address}/ops, with the key in {self._settings.operator_key_path}")
        self._say(f"logs: {self._settings.logs_folder}; Ctrl-C ends everything")

    def _watch(self) -> int:
        assert self._server is not None
        while self._stopping is None:
            status = self._server.process.poll()
            if status is not None:
                self._say(f"[red]the server ended with status {status}[/]; see {self._log_path('server')}")
                return status or 1
            self._tend_trainer()
            self._pass_on()
            time.sleep(_POLL_SECONDS)
        return self._end()

    def _tend_trainer(self) -> None:
        if not self._with_trainer:
            return
        at = time.monotonic()
        if self._trainer is not None and (status := self._trainer.process.poll()) is not None:
            if at - self._trainer.started_at > _CALM_SECONDS:
                self._deaths = 0
            pause = _BACKOFF_SECONDS[min(self._deaths, len(_BACKOFF_SECONDS) - 1)]
            self._deaths += 1
            self._say(
                f"[yellow]the trainer ended with status {status}[/] (see {self._log_path('trainer')}); "
                f"it starts again in {pause:g} s. The server is not affected."
            )
            self._trainer.log.close()
            self._trainer = None
            self._start_trainer_at = at + pause
        if self._trainer is None and self._start_trainer_at is not None and at >= self._start_trainer_at:
            self._trainer, self._told = self._start("trainer", ["trainer"], _humbly), 0

    def _pass_on(self) -> None:
        """What the trainer says to people; what it and its libraries say besides stays in its log."""
        if self._trainer is None:
            return
        with self._log_path("trainer").open("rb") as log:
            log.seek(self._told)
            for line in log:
                if not line.endswith(b"\n"):  # not yet written to its end
                    break
                self._told += len(line)
                if line.startswith(b"kudos: "):
                    text = line.decode(errors="replace").rstrip()
                    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    # ---- children ----------------------------------------------------------------------------------

    def _start(self, name: str, arguments: list[str], prepare: Callable[[], None]) -> Child:
        path = self._log_path(name)
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        log = path.open("wb")
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "kudos", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A terminal's Ctrl-C is ours to pass on, once and in order. Not a session of its own: Linux weighs niceness
            # within a session only, and the trainer's would count for nothing against the server's.
            process_group=0,
            preexec_fn=prepare,  # noqa: PLW1509 - this process has no threads
        )
        return Child(name, process, log, time.monotonic())

    def _end(self) -> int:
        children = [
            (self._trainer, _TRAINER_GRACE_SECONDS),
            (self._server, self._settings.drain_seconds + _SERVER_GRACE_SECONDS),
        ]
        for child, _ in children:
            if child is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child, grace_seconds in children:
            if child is None:
                continue
            try:
                child.process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                self._say(f"[yellow]the {child.name} did not end in {grace_seconds:g} s; it is killed[/]")
                child.process.kill()
                child.process.wait()
            child.log.close()
        self._pass_on()  # what the trainer said at its end
        status = self._server.process.returncode if self._server is not None else 0
        self._server = self._trainer = None
        return 0 if self._stopping is not None else status or 1

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stopping is None:
            self._stopping = number
            self._say("ending: streams that run may finish (again to end at once)")
        elif self._server is not None and self._server.process.poll() is None:
            self._server.process.send_signal(signal.SIGTERM)

    def _log_path(self, name: str) -> Path:
        return self._settings.logs_folder / f"{name}.log"

    def _say(self, text: str) -> None:
        self._console.print(f"kudos: {text}", soft_wrap=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _humbly() -> None:
    """Runs in the trainer before it starts: whoever chats comes first, on the processor and on the disk."""
    _die_with_parent()
    os.nice(_NICE)
    call = _IOPRIO_SET.get(os.uname().machine)
    if call is not None:
        ctypes.CDLL(None).syscall(call, 1, 0, _IONICE_IDLE)
