"""`kudos train` itself, with vLLM: what a run leaves, and what becomes of one that is killed or told to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from deploy import policies
from deploy.artifacts import verify
from deploy.digests import base_shapes
from feedback.schema import Lease, Policy, RunState, TrainingRun, now
from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.trainer.models import make_tokenizer
from tests.trainer.page import Page
from tests.trainer.test_run import CONFIG
from tests.trainer.votes import rows_of, write_votes
from trainer.config import TrainingConfig
from trainer.held_lease import LEASE


def _train(home: Path, model: Path, *arguments: str, **how: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "KUDOS_HOME": str(home), "KUDOS_MODEL": str(model), "OMP_NUM_THREADS": "1"}
    environment.pop("KUDOS_DATABASE_URL", None)
    return subprocess.Popen(
        [sys.executable, "-m", "kudos", "train", *arguments],
        env=environment | {"VLLM_CPU_KVCACHE_SPACE": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def _signal_at(start: str, process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Sent once it has said a line that begins so."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            process.send_signal(number)
            break


def _ended(process: subprocess.Popen[str], seconds: float = 1200) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with votes, and the training config beside it, from which each test takes a copy."""
    folder = tmp_path_factory.mktemp("log")
    opened = open_store(Settings(home=folder / "home", database_url=None))
    write_votes(opened, make_tokenizer())
    opened.close()
    (folder / "config.json").write_text(CONFIG.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def whole(log: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run that nobody disturbed: its home, its JSON line and its progress."""
    home = tmp_path_factory.mktemp("whole") / "home"
    shutil.copytree(log / "home", home)
    status, out, err = _ended(_train(home, model, "--config", str(log / "config.json"), "--json"))
    assert status == 0, err[-4000:]
    return home, json.loads(out.splitlines()[-1]), err


Whole = tuple[Path, dict[str, Any], str]


@pytest.mark.engine
@pytest.mark.timeout(1300)
def test_a_candidate_is_published_and_registered_with_its_lineage(whole: Whole, model: Path) -> None:
    home, outcome, _ = whole
    settings = Settings(home=home, database_url=None)
    store = open_store(settings)
    with store.read() as session:
        lineage = policies.lineage(session, outcome["version"])
        folder = policies.folder_of(lineage.policy, settings.policies_folder)
        assert lineage.policy.state == ("accepted" if outcome["accepted"] else "refused")
        assert lineage.policy.refusals == outcome["refusals"]
        assert [policy.kind for policy in lineage.ancestors] == ["base"]
        assert lineage.run is not None
        assert lineage.run.id == outcome["run_id"]
        assert (lineage.run.state, lineage.run.stage, lineage.run.progress) == ("succeeded", "done", 1.0)
        assert lineage.run.votes > 50
        assert lineage.reward_model is not None
        assert len(lineage.vote_ids) == lineage.run.votes
        assert lineage.voters > 1
        assert lineage.policy.report["prompts"] == 8
        assert lineage.policy.digest
        verify(folder, base_shapes(model), digest=lineage.policy.digest)
    store.close()


@pytest.mark.engine
@pytest.mark.timeout(1300)
def test_its_report_is_one_file_that_parses_and_fetches_nothing(whole: Whole) -> None:
    _, outcome, _ = whole
    text = Path(outcome["report"]).read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert {"svg", "table", "h1"} <= page.seen
    assert outcome["version"] in text
    assert "The gate " in text


@pytest.mark.engine
@pytest.mark.timeout(1300)
def test_it_leaves_no_words_of_people_and_tells_its_progress(whole: Whole) -> None:
    home, outcome, err = whole
    folder = home / "runs" / outcome["run_id"]
    left = {path.name for path in folder.iterdir()}
    assert {"config.json", "assessment.json", "reward_model", "report.html", "tensorboard"} <= left
    assert not left & {"examples.json", "checkpoint.pt"}
    assert TrainingConfig.model_validate_json((folder / "config.json").read_text()) == CONFIG
    assert list((folder / "tensorboard").glob("events.*"))
    assert "ppo: 6/6 reward" in err
    assert "held-out accuracy" in err


def let_lease_run_for(store: Store, time_left: timedelta) -> None:
    with store.write() as session:
        lease = session.get_one(Lease, LEASE)
        lease.expires_at = now() + time_left
        session.add(lease)


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_in_the_middle_of_ppo_resumes_to_the_very_same_policy(
    whole: Whole, log: Path, model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(log / "home", home)
    process = _train(home, model, "--config", str(log / "config.json"))
    _signal_at("ppo: 2/6", process, signal.SIGKILL)
    assert _ended(process)[0] == -signal.SIGKILL
    store = open_store(Settings(home=home, database_url=None))
    (row,) = rows_of(store, TrainingRun)
    assert row.state == RunState.RUNNING, "nobody was left to write that it died"
    folder = home / "runs" / row.id
    assert (folder / "checkpoint.pt").exists()
    assert (folder / "examples.json").exists()

    # The dead trainer's lease still holds: a second one is refused, in one line.
    let_lease_run_for(store, timedelta(hours=1))  # a busy machine may take longer than it has left
    status, _, err = _ended(_train(home, model, "--resume", row.id))
    assert status == 1
    assert "LeaseHeld" in err
    assert "Traceback" not in err
    let_lease_run_for(store, timedelta(seconds=-1))  # as if it had run out

    status, out, err = _ended(_train(home, model, "--resume", row.id, "--json"))
    assert status == 0, err[-4000:]
    assert "ppo: 1/6" not in err, "it goes on from its checkpoint"
    assert "ppo: 6/6" in err
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["run_id"] == row.id
    with store.read() as session:
        resumed = session.get(TrainingRun, row.id)
        assert resumed is not None
        assert resumed.state == RunState.SUCCEEDED
        found = session.exec(select(Policy).where(col(Policy.run_id) == row.id)).all()
        assert len(found) == 1
    store.close()
    assert not (folder / "examples.json").exists()

    unbroken = whole[0] / "policies" / whole[1]["version"] / "adapter_model.safetensors"
    here = home / "policies" / outcome["version"] / "adapter_model.safetensors"
    assert here.read_bytes() == unbroken.read_bytes()


@pytest.mark.engine
@pytest.mark.timeout(1300)
def test_a_run_that_is_told_to_stop_is_interrupted_and_gives_its_lease_back(
    log: Path, model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(log / "home", home)
    process = _train(home, model, "--config", str(log / "config.json"))
    _signal_at("samples", process, signal.SIGTERM)
    started = time.monotonic()
    assert _ended(process)[0] == 143
    assert time.monotonic() - started < 240
    store = open_store(Settings(home=home, database_url=None))
    (row,) = rows_of(store, TrainingRun)
    (lease,) = rows_of(store, Lease)
    store.close()
    assert row.state == RunState.INTERRUPTED
    assert lease.expires_at <= now()
