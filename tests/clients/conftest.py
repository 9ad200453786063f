"""Servers for clients that no one here wrote, and where these are installed: `make test-clients` (install.sh).

Not among the tests of `make test`: the clients take minutes to install and gigabytes of disk.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import ROOT, ForkedServer, Running, Zygote, real, zygote
from tests.server.test_tools import CALL, folder

__all__ = ["folder", "real", "zygote"]  # fixtures

INSTALLED = Path(os.environ.get("KUDOS_CLIENTS", ROOT / ".clients"))
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def caller(zygote: Zygote, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose model calls `weather`, whatever it is asked: a fake engine's, as none here was trained to."""
    home = tmp_path_factory.mktemp("caller") / "home"
    says = {"FAKE_PROMPTS": str(folder), "FAKE_SAYS": f"One moment. {CALL}"}
    server = ForkedServer(zygote, home, KUDOS_MODEL="kudos-tiny", **says)  # the name that the clients ask for
    yield server.start()
    server.kill()
    server.store.close()


@pytest.fixture(scope="session")
def addresses(real: Running, caller: Running) -> dict[str, str]:
    """The environment of a client's own script."""
    return os.environ | {
        "KUDOS_URL": real.url,
        "KUDOS_KEY": real.operator_key,
        "TOOLS_URL": caller.url,
        "TOOLS_KEY": caller.operator_key,
    }


def passes(command: list[str], environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
