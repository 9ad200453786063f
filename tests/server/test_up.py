"""`kudos up` starts a server and a trainer, says when it is ready, and ends both; nothing is left of them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import ROOT, START_SECONDS, alive, free_port, wait_for

pytestmark = pytest.mark.engine


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "kudos", "up"],
        cwd=ROOT,
        env=os.environ | {"KUDOS_HOME": str(tmp_path), "KUDOS_PORT": str(free_port()), "KUDOS_ENGINE_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def children_of(process_id: int) -> dict[str, int]:
    """The command's name (serve, trainer) and id of each child."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            command = (stat.parent / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == process_id and len(command) > 3 and command[1:3] == ["-m", "kudos"]:
            found[command[3]] = int(stat.parent.name)
    return found


@pytest.mark.timeout(2 * START_SECONDS)
def test_up_is_ready_restarts_its_trainer_and_ends_all(up: subprocess.Popen[str], tmp_path: Path) -> None:
    assert up.stdout is not None
    line = up.stdout.readline()
    found = re.fullmatch(r"kudos is ready: (http://127\.0\.0\.1:\d+)\n", line)
    assert found, (line, up.stderr and up.stderr.read())
    wait_for(lambda: httpx.get(f"{found[1]}/health/ready", timeout=60).status_code == 200, 60, "the server to be ready")
    assert "<title>kudos</title>" in httpx.get(found[1], timeout=60).text

    wait_for(lambda: "trainer" in children_of(up.pid), 120, "the trainer to be started")
    children = children_of(up.pid)
    assert os.getpriority(os.PRIO_PROCESS, children["trainer"]) > os.getpriority(os.PRIO_PROCESS, children["serve"])
    os.kill(children["trainer"], signal.SIGKILL)
    wait_for(lambda: children_of(up.pid).get("trainer") not in (None, children["trainer"]), 120, "another trainer")
    children = children_of(up.pid)
    log = tmp_path / "logs" / "trainer.log"
    wait_for(lambda: "waits for" in log.read_text(), 120, "the other trainer to be ready")
    wait_for(lambda: httpx.get(f"{found[1]}/health/ready", timeout=60).status_code == 200, 60, "the server to be ready")

    up.send_signal(signal.SIGINT)
    assert up.wait(120) == 0
    assert up.stderr is not None
    told = up.stderr.read()
    assert str(tmp_path / "operator.key") in told
    assert "the trainer ended with status -9" in told
    assert "kudos: the trainer waits for 200 new votes" in told
    assert not any(alive(child) for child in children.values())
    assert (tmp_path / "logs" / "server.log").exists()


def test_a_server_that_cannot_start_is_said_with_its_last_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kudos", "up"],
        cwd=ROOT,
        env=os.environ | {"KUDOS_HOME": str(tmp_path), "KUDOS_MODEL": str(tmp_path / "nowhere"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "kudos is ready" not in done.stdout
    assert "KUDOS_MODEL" in done.stderr
