"""The real engine runs the very weights that are being trained, and says so in its logprobs."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.trainer.models import make_model_folder
from trainer.config import PpoConfig

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1300)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_model_folder(tmp_path_factory.mktemp("sampler") / "model")
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.engine_worker", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_its_logprobs_are_the_trainers_within_what_bf16_allows(measured: dict[str, Any]) -> None:
    assert measured["base_gap"] < PpoConfig().sampler_gap_nats
    assert measured["adapted_gap"] < PpoConfig().sampler_gap_nats


def test_an_update_really_changes_what_it_runs_and_the_bound_would_see_a_missing_one(measured: dict[str, Any]) -> None:
    assert measured["adapted_gap_to_base"] > 2 * PpoConfig().sampler_gap_nats
    assert measured["adapted"] != measured["base"]


def test_the_backbones_own_weights_come_back_whole(measured: dict[str, Any]) -> None:
    assert measured["returned"] == measured["base"]


def test_the_same_seed_gives_the_same_replies_and_another_others(measured: dict[str, Any]) -> None:
    assert measured["same"] == measured["base"]
    assert measured["same_logprobs"]
    assert measured["other"] != measured["base"]
    assert len({tuple(reply) for reply in measured["base"]}) > 40, "one seed must not give one reply to all"


def test_a_reply_ends_with_its_end_token_or_at_its_limit(measured: dict[str, Any]) -> None:
    ended = [row for row in measured["ends"] if row[0]]
    assert ended
    assert all(last_is_end for _, last_is_end, _ in ended)
    assert all(not last_is_end and length == 24 for stopped, last_is_end, length in measured["ends"] if not stopped)
    assert measured["lengths_agree"]
    assert measured["prompts_kept"]
