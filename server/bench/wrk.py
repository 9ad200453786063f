"""wrk as the client: a closed loop over so many connections, told by a Lua script what to send."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

SCRIPTS = Path(__file__).parent
_RESULT = "RESULT "


class Wrk:
    """One run, under way from when it is made. Scripts end by printing `RESULT` and a JSON object."""

    def __init__(
        self, script: str, url: str, *, connections: int, seconds: int, environment: Mapping[str, str]
    ) -> None:
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        self._process = subprocess.Popen(  # noqa: S603 - our own
            [*command, "-s", str(SCRIPTS / script), url],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self) -> dict[str, Any]:
        said, _ = self._process.communicate()
        for line in said.splitlines():
            if line.startswith(_RESULT):
                return dict(json.loads(line.removeprefix(_RESULT)))
        raise RuntimeError(f"wrk ended without a result:\n{said[-2000:]}")


def need_wrk() -> None:
    if shutil.which("wrk") is None:
        typer.echo("wrk is not installed: `apt install wrk`", err=True)
        raise typer.Exit(1)
