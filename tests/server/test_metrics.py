"""What a scrape says once people have chatted and voted, as Prometheus' own parser reads it."""

import math
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel import select

from deploy import policies
from deploy.artifacts import Published
from deploy.gate import Verdict
from feedback.schema import Policy, RunState, TrainingRun, now
from server import metrics
from tests.deploy.folders import make_model, publish_adapter
from tests.deploy.monitoring import ROOT, VLLM_METRICS, all_metrics
from tests.fixtures_postgres import make_postgres_server
from tests.server.conftest import ForkedServer, Running, ask, events, wait_for
from tests.server.fake_engine import REPLY_TOKENS
from trainer.progress import STAGES

Make = Callable[..., ForkedServer]

FAMILIES = {
    "kudos_chat_requests": ("counter", {"route", "status", "track"}),
    "kudos_chat_request_duration_seconds": ("histogram", {"track"}),
    "kudos_chat_time_to_first_token_seconds": ("histogram", {"track"}),
    "kudos_chat_time_per_output_token_seconds": ("histogram", {"track"}),
    "kudos_chat_reply_tokens": ("histogram", {"track"}),
    "kudos_chat_streams_active": ("gauge", set()),
    "kudos_chat_stream_aborts": ("counter", {"reason"}),
    "kudos_chat_tokens": ("counter", {"type"}),
    "kudos_chat_replies": ("counter", {"track", "state"}),
    "kudos_chat_refusals": ("counter", {"track"}),
    "kudos_chat_rate_limited": ("counter", {"unit", "whose"}),
    "kudos_chat_safety_flags": ("counter", {"track", "stage", "source"}),
    "kudos_chat_safety_check_seconds": ("histogram", {"source"}),
    "kudos_feedback_votes": ("counter", {"kind", "value", "track", "result"}),
    "kudos_feedback_vote_delay_seconds": ("histogram", set()),
    "kudos_feedback_harm_flags": ("counter", {"track"}),
    "kudos_feedback_effective_votes": ("gauge", set()),
    "kudos_storage_writes_waiting": ("gauge", set()),
    "kudos_storage_write_seconds": ("histogram", set()),
    "kudos_storage_disk_free_bytes": ("gauge", set()),
    "kudos_storage_disk_size_bytes": ("gauge", set()),
    "kudos_storage_database_bytes": ("gauge", set()),
    "kudos_policy_swaps": ("counter", {"kind", "result"}),
    "kudos_policy_swap_duration_seconds": ("histogram", {"phase"}),
    "kudos_policy_info": ("gauge", {"version", "track"}),
    "kudos_replicas": ("gauge", {"state"}),
    "kudos_shadow_replies": ("counter", {"result"}),
    "kudos_policy_missing": ("gauge", set()),
    "kudos_policy_folded": ("gauge", set()),
    "kudos_mixed_policy_replies": ("counter", set()),
    "kudos_rollout_share_ratio": ("gauge", {"track"}),
    "kudos_rollout_sample_ratio_mismatch": ("gauge", set()),
    "kudos_engine_up": ("gauge", set()),
    "kudos_engine_restarts": ("counter", set()),
    "kudos_training_running": ("gauge", set()),
    "kudos_training_stage": ("gauge", {"stage"}),
    "kudos_training_progress_ratio": ("gauge", set()),
    "kudos_training_runs": ("gauge", {"state"}),
    "kudos_training_votes_waiting": ("gauge", set()),
    "kudos_training_last_success_timestamp_seconds": ("gauge", set()),
    "kudos_training_votes": ("gauge", set()),
    "kudos_training_burst_votes": ("gauge", set()),
    "kudos_training_held_out_accuracy_ratio": ("gauge", set()),
    "kudos_training_win_rate_ratio": ("gauge", set()),
    "kudos_training_judge_win_rate_ratio": ("gauge", set()),
    "kudos_training_reward_gain": ("gauge", set()),
    "kudos_training_judge_gain": ("gauge", set()),
    "kudos_training_kl_nats": ("gauge", set()),
    "kudos_training_reward": ("gauge", set()),
    "kudos_training_entropy_nats": ("gauge", set()),
    "kudos_training_clip_ratio": ("gauge", set()),
    "kudos_training_explained_variance_ratio": ("gauge", set()),
}
OF_A_ROLLOUT = {
    "kudos_rollout_effect": ("gauge", {"metric", "bound"}),
    "kudos_rollout_guardrail": ("gauge", {"metric", "bound"}),
    "kudos_rollout_decisions": ("counter", {"decision"}),
}
"""Silent while there is none: tests/server/test_supervision.py."""


def scraped(running: Running) -> dict[str, Metric]:
    with running.client() as client:
        text = client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in families.items() if not name.endswith("_created")}


def value(running: Running, sample_name: str, **labels: str) -> float:
    """Of exactly this series; 0 where it is not there."""
    for family in scraped(running).values():
        for sample in family.samples:
            if sample.name == sample_name and sample.labels == labels:
                return sample.value
    return 0.0


@pytest.fixture
def running(forked: Make, tmp_path: Path) -> Running:
    return forked(KUDOS_MODEL=str(make_model(tmp_path / "base"))).start()


@pytest.fixture
def base(running: Running, tmp_path: Path) -> Path:
    return tmp_path / "base"


def an_adapter(running: Running, base: Path, scratch: Path) -> Published:
    published = publish_adapter(base, running.home / "policies", scratch)
    with running.store.write() as session:
        parent = session.exec(select(Policy)).one().version
        policies.register(session, published, parent=parent, verdict=Verdict(accepted=True, refusals=[], flags=[]))
    return published


def vote(client: httpx.Client, reply_id: str, **ballot: object) -> int:
    return client.put(f"/v1/replies/{reply_id}/feedback", json=ballot).status_code


def everything(running: Running) -> None:
    """Each kind of thing that is counted, once or more, by the users gina and hugo."""
    hello = {"messages": [{"role": "user", "content": "hello"}]}
    with running.client("gina") as gina, running.client("hugo") as hugo:
        reply = ask(gina)["id"]
        with gina.stream("POST", "/v1/chat/completions", json=hello | {"stream": True}) as response:
            assert list(events(response))[-1] == "[DONE]"
        assert gina.post("/v1/chat/completions", json={"messages": "hello"}).status_code == 422
        for ballot in ({"thumb": "up"}, {"thumb": "up"}, {"thumb": "down", "harmful": True}):
            assert vote(gina, reply, **ballot) == 200
        assert vote(hugo, reply, thumb="up") == 404
        duel = hugo.post("/v1/comparisons", json=hello).json()
        assert hugo.put(f"/v1/comparisons/{duel['id']}/choice", json={"choice": "tie"}).status_code == 200
        assert hugo.delete(f"/v1/comparisons/{duel['id']}/choice").status_code == 200


def test_names_types_and_labels(running: Running) -> None:
    everything(running)
    found = {name: family for name, family in scraped(running).items() if name.startswith("kudos_")}
    assert set(FAMILIES | OF_A_ROLLOUT) == set(found)
    for name, (kind, labels) in FAMILIES.items():
        assert found[name].type == kind, name
        assert found[name].documentation, name
        assert found[name].samples, f"{name} says nothing"
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == labels, sample


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for name, (kind, _) in (FAMILIES | OF_A_ROLLOUT).items():
        full = f"{name}_total" if kind == "counter" else name
        assert re.search(rf"`{full}(\{{[a-z,]+\}})?`", page), f"{full} is not in docs/operations.md"


def test_labels_hold_neither_people_nor_requests_nor_versions(running: Running) -> None:
    everything(running)
    with running.store.read() as session:
        version = session.exec(select(Policy)).one().version
    seen: dict[str, set[str]] = {}
    for name, family in scraped(running).items():
        for sample in family.samples:
            for label, text in sample.labels.items():
                seen.setdefault(label, set()).add(text)
                if name != "kudos_policy_info":
                    assert version not in text, sample
                for private in ("gina", "hugo", "chatcmpl", "conv", "cmp_", "sk-kudos"):
                    assert private not in text, sample
    assert seen["track"] == {"stable", "canary", "none"}
    assert seen["route"] >= {"/v1/chat/completions", "/v1/comparisons", "/v1/replies/{reply_id}/feedback"}


def test_votes_and_replies_are_counted_by_what_became_of_them(running: Running) -> None:
    everything(running)
    votes = {
        ("reply", "up", "stable", "accepted"): 1,
        ("reply", "up", "stable", "duplicate"): 1,
        ("reply", "down", "stable", "changed"): 1,
        ("reply", "up", "none", "rejected"): 1,
        ("comparison", "tie", "stable", "accepted"): 1,
        ("comparison", "none", "none", "withdrawn"): 1,
    }
    found = {
        tuple(sample.labels[label] for label in ("kind", "value", "track", "result")): sample.value
        for sample in scraped(running)["kudos_feedback_votes"].samples
        if sample.name.endswith("_total")
    }
    assert found == votes
    assert value(running, "kudos_feedback_harm_flags_total", track="stable") == 1
    assert value(running, "kudos_feedback_vote_delay_seconds_count") == 2, "of the first votes alone"
    assert value(running, "kudos_feedback_effective_votes") == 1
    assert value(running, "kudos_chat_replies_total", track="stable", state="complete") == 4
    assert value(running, "kudos_chat_tokens_total", type="reply") == 4 * REPLY_TOKENS
    assert value(running, "kudos_chat_tokens_total", type="prompt") > 0
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "request_duration_seconds"):
        assert value(running, f"kudos_chat_{name}_count", track="stable") == 4, name
    chat = {"route": "/v1/chat/completions"}
    wait_for(lambda: value(running, "kudos_chat_requests_total", **chat, status="200", track="stable") == 2, 10)
    wait_for(lambda: value(running, "kudos_chat_requests_total", **chat, status="422", track="none") == 1, 10)


def test_buckets_are_those_that_objectives_need(running: Running) -> None:
    everything(running)

    def bounds(name: str) -> list[float]:
        samples = scraped(running)[name].samples
        return sorted({float(sample.labels["le"]) for sample in samples if "le" in sample.labels})

    first = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, math.inf]
    assert bounds("kudos_chat_time_to_first_token_seconds") == first
    each = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, math.inf]
    assert bounds("kudos_chat_time_per_output_token_seconds") == each
    assert bounds("kudos_feedback_vote_delay_seconds") == [1, 5, 15, 60, 300, 3600, 86400, math.inf]


def test_storage_is_measured(running: Running) -> None:
    everything(running)
    free, size = (value(running, f"kudos_storage_disk_{name}_bytes") for name in ("free", "size"))
    assert 0 < free < size
    assert value(running, "kudos_storage_database_bytes") >= 4096
    assert value(running, "kudos_storage_write_seconds_count") >= 10
    assert value(running, "kudos_storage_writes_waiting") == 0


def test_a_candidate_has_numbers_of_its_own(running: Running, base: Path, tmp_path: Path) -> None:
    published = an_adapter(running, base, tmp_path)
    with running.client() as client:
        client.post("/v1/rollouts", json={"version": published.version, "share": 0.5})
        share = lambda: value(running, "kudos_rollout_share_ratio", track="canary")  # noqa: E731
        wait_for(lambda: share() == 0.5, 30, "the candidate to be held")
        assert value(running, "kudos_policy_info", version=published.version, track="canary") == 1
        assert value(running, "kudos_policy_missing") == 0
        assert value(running, "kudos_policy_swaps_total", kind="adapter", result="proved") == 1
        assert value(running, "kudos_policy_swap_duration_seconds_count", phase="prove") == 1
        met = None
        for user in (f"user{at}" for at in range(64)):
            with running.client(user) as person:
                reply = ask(person)
                if reply["system_fingerprint"] == published.version:
                    met = user
                    assert vote(person, reply["id"], thumb="up", harmful=True) == 200
                    break
        assert met is not None, "half of all users should meet it"
        labels = {"kind": "reply", "value": "up", "track": "canary", "result": "accepted"}
        assert value(running, "kudos_feedback_votes_total", **labels) == 1
        assert value(running, "kudos_feedback_harm_flags_total", track="canary") == 1
        assert value(running, "kudos_chat_time_to_first_token_seconds_count", track="canary") == 1
        # A comparison in a canary has the candidate on one side; its two replies count for one track each.
        duel = client.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "hello"}]}).json()
        client.put(f"/v1/comparisons/{duel['id']}/choice", json={"choice": "left"})
        labels = {"kind": "comparison", "value": "left", "track": "canary", "result": "accepted"}
        assert value(running, "kudos_feedback_votes_total", **labels) == 1
        assert value(running, "kudos_chat_replies_total", track="canary", state="complete") == 2


def test_a_policy_that_cannot_be_held_is_missing(running: Running, base: Path, tmp_path: Path) -> None:
    published = an_adapter(running, base, tmp_path)
    published.path.chmod(0o755)
    (published.path / "adapter_config.json").unlink()
    with running.client() as client:
        client.post("/v1/rollouts", json={"version": published.version, "share": 0.5})
        wait_for(lambda: value(running, "kudos_policy_missing") == 1, 30, "the folder to be refused")
        assert value(running, "kudos_policy_swaps_total", kind="adapter", result="refused") == 1
        client.post("/v1/rollouts/current/rollback")
        wait_for(lambda: value(running, "kudos_policy_missing") == 0, 30, "nothing to be wanted any more")


def test_a_stream_that_breaks_off_counts_as_an_error(forked: Make, tmp_path: Path) -> None:
    """Its status was 200 when it began; whoever watches for errors would never see it."""
    switch = tmp_path / "dead"
    running = forked(FAKE_ENGINE_DEAD=str(switch), FAKE_TOKEN_SECONDS="0.1").start()
    hello = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    for route in ("/v1/chat/completions", "/v1/comparisons"):
        with running.client() as client, client.stream("POST", route, json=hello) as response:
            assert response.status_code == 200
            reader = events(response)
            next(reader)
            switch.touch()
            assert "error" in list(reader)[-1]
        labels = {"route": route, "status": "503", "track": "stable"}
        wait_for(lambda labels=labels: value(running, "kudos_chat_requests_total", **labels) == 1, 10, "the count")
        wait_for(running.ready, 30, "the engine to be started again")
    assert value(running, "kudos_chat_stream_aborts_total", reason="engine") == 3


def a_run(running: Running, run_id: str, **fields: object) -> None:
    with running.store.write() as session:
        session.add(TrainingRun(id=run_id, **fields))


def test_training_is_read_from_its_rows(running: Running) -> None:
    everything(running)
    with running.client("gina") as gina:
        vote(gina, ask(gina)["id"], thumb="up")
    assert value(running, "kudos_training_votes_waiting") == 2
    assert value(running, "kudos_training_last_success_timestamp_seconds") == 0
    assert math.isnan(value(running, "kudos_training_win_rate_ratio")), "0 would be a measurement"
    finished = now() - timedelta(hours=1)
    evaluation = {"win_rate": 0.7, "kl_nats": 3.5, "held_out_accuracy": 0.8, "reward_gain": 0.9, "judge_gain": None}
    ppo = [{"reward": 0.1}, {"reward": 0.6, "clip_fraction": 0.05, "explained_variance": 0.4}]
    a_run(
        running, "run_1", state=RunState.SUCCEEDED, stage="done", progress=1.0, votes=5, last_vote_id=3,
        policy_version="v1-00000001", metrics={"evaluation": evaluation, "ppo": ppo},
        started_at=finished - timedelta(hours=1), finished_at=finished,
    )  # fmt: skip
    a_run(running, "run_2", state=RunState.SUCCEEDED, stage="reward model", progress=0.3, finished_at=now())
    a_run(running, "run_3", state=RunState.RUNNING, stage="ppo", progress=0.5, started_at=now() + timedelta(seconds=1))
    assert value(running, "kudos_training_last_success_timestamp_seconds") == pytest.approx(finished.timestamp())
    expected = {
        "votes": 5, "win_rate_ratio": 0.7, "kl_nats": 3.5, "held_out_accuracy_ratio": 0.8, "reward_gain": 0.9,
        "reward": 0.6, "clip_ratio": 0.05, "explained_variance_ratio": 0.4, "running": 1, "progress_ratio": 0.5,
    }  # fmt: skip
    assert {name: value(running, f"kudos_training_{name}") for name in expected} == expected
    for name in ("judge_gain", "judge_win_rate_ratio", "entropy_nats"):
        assert math.isnan(value(running, f"kudos_training_{name}")), name
    assert value(running, "kudos_training_votes_waiting") == 1, "one vote is newer than what the run saw"
    stages = {s.labels["stage"]: s.value for s in scraped(running)["kudos_training_stage"].samples}
    assert stages == {stage: float(stage == "ppo") for stage in (*STAGES, "done")}
    assert value(running, "kudos_training_runs", state="succeeded") == 2
    assert value(running, "kudos_training_runs", state="running") == 1


@pytest.mark.postgres
def test_without_its_database_a_server_still_says_how_it_is(forked: Make) -> None:
    database = make_postgres_server()
    try:
        server = forked(KUDOS_DATABASE_URL=database.new_database())
        server.start()
        url = f"{server.url}/metrics"  # from this machine no key is needed, which only the database could tell
        assert "kudos_engine_up 1.0" in httpx.get(url, timeout=60.0).text
        database.stop()
        answer = httpx.get(url, timeout=60.0)
        assert answer.status_code == 200
        assert "kudos_engine_up 1.0" in answer.text
    finally:
        database.close()


def test_the_stages_are_the_trainers() -> None:
    assert (*STAGES, "done") == metrics.STAGES


def test_what_rules_and_dashboards_read_is_there(running: Running) -> None:
    """vLLM's own are looked for where there is a real engine: tests/server/test_dashboards.py."""
    everything(running)
    found = {sample.name for family in scraped(running).values() for sample in family.samples}
    assert all_metrics() - VLLM_METRICS <= found
