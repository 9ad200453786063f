"""Starts real servers in no time: imports once, then forks one for each request that it reads on its standard input.

A server forked here is the real one (uvicorn, routes, ledger, SQLite) around a fake engine. Each line in is a JSON
object of environment variables; each line out is the new process's id. It reaps what was killed, and ends when its
input ends.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import alembic.command
import uvicorn.lifespan.off
import uvicorn.loops.auto
import uvicorn.protocols.http.auto
import uvicorn.protocols.websockets.auto

import feedback.migrate
import server.app
import server.run
from server.prompts import Prompts
from server.settings import Settings
from tests.server.fake_engine import FakeEngine


def serve(environment: dict[str, str]) -> int:
    os.environ.update(environment)
    output = os.open(environment["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    engine = FakeEngine(token_seconds=float(environment.get("FAKE_TOKEN_SECONDS", "0.002")))
    prompts = Prompts(Path(environment["FAKE_PROMPTS"])) if "FAKE_PROMPTS" in environment else PROMPTS
    return asyncio.run(server.run.serve(Settings(), engine, lambda folder: prompts))


PRELOADED = (alembic.command, feedback.migrate, server.app, uvicorn)  # imported once, for all that are forked
PROMPTS = Prompts(Path(os.environ["KUDOS_MODEL"]))


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    print("ready", flush=True)
    for line in sys.stdin:
        environment = json.loads(line)
        process_id = os.fork()
        if process_id == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # not to outlive the tests, whatever ends them
            status = 1
            try:
                status = serve(environment)
            finally:
                os._exit(status)
        print(process_id, flush=True)


if __name__ == "__main__":
    main()
