"""All that Schemathesis does, on the real engine too: see tests/server/test_contract.py for what is demanded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import ForkedServer, Running, Zygote
from tests.server.test_contract import WIDEST, schemathesis


@pytest.fixture(scope="module")
def wide(zygote: Zygote, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = ForkedServer(zygote, tmp_path_factory.mktemp("wide") / "home", FAKE_PROMPTS=str(folder), **WIDEST)
    yield server.start()
    server.kill()
    server.store.close()


@pytest.mark.parametrize("phase", ["examples", "coverage", "fuzzing", "stateful"])
def test_around_the_fake_engine(wide: Running, phase: str) -> None:
    schemathesis(wide, f"--phases={phase}", "--max-examples=30", "--exclude-operation-id=erase", seconds=1800)
    assert wide.metric("kudos_chat_requests_total", status="500") == 0


def test_around_the_real_engine(real: Running) -> None:
    # Of what one may ask for, this model has no tools, and this deployment no hundred replies at once: refused with 422
    # and 400, which are described.
    options = ["--exclude-checks=positive_data_acceptance", "--exclude-operation-id=erase", "--max-examples=10"]
    schemathesis(real, "--phases=examples,coverage,fuzzing,stateful", *options, seconds=1800)
    assert real.metric("kudos_chat_requests_total", status="500") == 0
    assert real.metric("kudos_engine_restarts_total") == 0
    (real.home / "train.request").unlink(missing_ok=True)
