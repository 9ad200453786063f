"""Every panel and rule against the real thing: the real engine chats, a real Prometheus scrapes it and is asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback.schema import RunState, TrainingRun, now
from server.identity import create_key, revoke_key
from tests.deploy.monitoring import VLLM_METRICS, all_metrics, dashboard_expressions
from tests.server.conftest import Running, ask, wait_for
from tests.server.prometheus import Prometheus, prometheus_of

pytestmark = pytest.mark.engine

SECONDS = 90.0  # for a panel to show something; it takes a few, unless the machine is busy


def converse(running: Running) -> None:
    """What the panels are about: replies, votes of each kind, a comparison, a repeated vote, a refused one."""
    with running.client("reader") as client:
        for ballot in ({"thumb": "up"}, {"thumb": "down", "harmful": True}, {"rating": 0.5}):
            path = f"/v1/replies/{ask(client, max_tokens=8)['id']}/feedback"
            for _ in range(2):
                assert client.put(path, json=ballot).status_code == 200
        assert client.put("/v1/replies/chatcmpl-none/feedback", json={"thumb": "up"}).status_code == 404
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        duel = client.post("/v1/comparisons", json=body).json()
        assert client.put(f"/v1/comparisons/{duel['id']}/choice", json={"choice": "left"}).status_code == 200


@pytest.fixture(scope="module")
def prometheus(real: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with real.store.write() as session:
        key, secret = create_key(session, label="prometheus", scopes=["metrics"])
        session.add(
            TrainingRun(
                id="run_dashboards", state=RunState.SUCCEEDED, stage="done", progress=1.0, policy_version="v1-00000001",
                finished_at=now(), metrics={"evaluation": {"win_rate": 0.7}, "ppo": [{"reward": 0.5}]},
            )
        )  # fmt: skip
    converse(real)
    try:
        with prometheus_of(real, secret, tmp_path_factory.mktemp("prometheus")) as found:
            wait_for(lambda: found.query('up{job="kudos"} == 1'), SECONDS, "a scrape")
            yield found
    finally:  # other tests share this server
        with real.store.write() as session:
            session.delete(session.get_one(TrainingRun, "run_dashboards"))
            revoke_key(session, key.id)


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    for panel, expression in dashboard_expressions():
        wait_for(lambda expression=expression: prometheus.query(expression), SECONDS, f"{panel}: {expression}")


def test_every_metric_that_rules_and_panels_name_is_scraped(prometheus: Prometheus) -> None:
    for name in sorted(all_metrics()):
        assert prometheus.query(name), name
    assert all_metrics() >= VLLM_METRICS, "a name that nothing reads needs no exception"


def test_no_rule_fails_and_nothing_fires_for_a_server_at_ease(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        return all(rule["lastEvaluation"] > "2000" for rule in prometheus.rules())

    wait_for(evaluated, SECONDS, "each rule to be evaluated")
    assert [(rule["name"], rule["lastError"]) for rule in prometheus.rules() if rule["health"] != "ok"] == []
    firing = [rule["name"] for rule in prometheus.rules() if rule.get("state") == "firing"]
    assert set(firing) <= {"KudosDiskAlmostFull"}, "which this machine's disk may well be"


def test_prometheus_needs_its_key(real: Running, tmp_path: Path) -> None:
    with prometheus_of(real, "sk-kudos-wrong", tmp_path) as refused:
        wait_for(lambda: refused.query('up{job="kudos"} == 0'), SECONDS, "a scrape to be refused")
