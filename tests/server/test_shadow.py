"""A candidate in shadow: it answers beside the stable policy, at most as much as it may, and nobody ever sees it."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlmodel import select

from deploy import policies
from deploy.gate import Verdict
from feedback.privacy import erase
from feedback.schema import Policy, Reply
from tests.deploy.folders import make_model, publish_adapter
from tests.server.conftest import ForkedServer, Running, ask, wait_for

Make = Callable[..., ForkedServer]
PLAN = {"KUDOS_ROLLOUT_LOOK_SECONDS": "0.1", "KUDOS_ROLLOUT_MIN_MINUTES": "0", "KUDOS_ROLLOUT_SHADOW_REPLIES": "5"}


@pytest.fixture
def start(forked: Make, tmp_path: Path) -> Callable[..., tuple[Running, str]]:
    """A server, and the version of a candidate in shadow that it holds."""

    def started(**environment: str) -> tuple[Running, str]:
        base = make_model(tmp_path / "base")
        running = forked(KUDOS_MODEL=str(base), KUDOS_SHADOW_SHARE="1", **{**PLAN, **environment}).start()
        published = publish_adapter(base, running.home / "policies", tmp_path)
        with running.store.write() as session:
            parent = session.exec(select(Policy)).one().version
            policies.register(session, published, parent=parent, verdict=Verdict(accepted=True, refusals=[], flags=[]))
        with running.client() as client:
            answer = client.post("/v1/rollouts", json={"version": published.version, "shadow": True})
            assert (answer.status_code, answer.json()["state"]) == (200, "shadow"), answer.text
            holds = lambda: published.version in client.get("/v1/policies").json()["wanted"]["holds"]  # noqa: E731
            wait_for(holds, 30, "the candidate to be held")
        return running, published.version

    return started


def shadows(running: Running) -> list[Reply]:
    with running.store.read() as session:
        return list(session.exec(select(Reply).where(Reply.source == "shadow")))


def count(running: Running, result: str) -> float:
    return running.metric("kudos_shadow_replies_total", result=result)


def test_nobody_sees_what_it_says(start: Callable[..., tuple[Running, str]]) -> None:
    running, candidate = start()
    with running.client("ann") as ann:
        reply = ask(ann)
        assert reply["system_fingerprint"].startswith("v0-")
        [row] = wait_for(lambda: shadows(running), 30, "a reply in shadow")
        assert (row.policy_version, row.arm, row.state, row.propensity) == (candidate, "shadow", "complete", 1.0)
        assert (row.regenerate_of, row.user_id, row.mixed_versions) == (reply["id"], "operator/ann", None)
        assert row.text == reply["choices"][0]["message"]["content"], "the fake engine says the same always"
        assert row.first_token_at is not None
        assert row.created_at <= row.first_token_at <= row.finished_at  # type: ignore[operator]
        assert len(row.token_ids or b"") == 4 * reply["usage"]["completion_tokens"]
        whole = ann.get(f"/v1/conversations/{reply['conversation_id']}").json()
        assert [each["id"] for each in whole["replies"]] == [reply["id"]]
        assert row.id not in ann.get("/v1/me/export").text
        with running.store.write() as session:
            session.get_one(Reply, row.id).text = "said in the shadow"
        assert ann.get("/v1/conversations", params={"search": "in the shadow"}).json()["data"] == []
        assert ann.get(f"/v1/replies/{row.id}").status_code == 404
        assert ann.put(f"/v1/replies/{row.id}/feedback", json={"thumb": "up"}).status_code == 404
        body = {"messages": [{"role": "user", "content": "again"}], "regenerate_of": row.id}
        assert ann.post("/v1/chat/completions", json=body).status_code == 404
        then = ask(ann, "and then?", conversation_id=reply["conversation_id"])
        with running.store.read() as session:
            assert session.get_one(Reply, then["id"]).parent_id == reply["id"], (
                "the conversation goes on from what was seen"
            )
        duel = ann.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "hello"}]}).json()
        assert (
            ann.put(f"/v1/comparisons/{duel['id']}/choice", json={"choice": "tie"}).json()["revealed"]["left"]
            != candidate
        )
    assert running.metric("kudos_chat_replies_total", track="canary") == 0
    with running.client() as client:
        assert client.get(f"/v1/policies/{candidate}").json()["lineage"]["replies"] == {"shadow": len(shadows(running))}
    wait_for(lambda: len(shadows(running)) == 2, 30, "the second one")
    erase(running.store, running.home / "runs", "operator/ann")
    assert shadows(running) == [], "it is erased with the person"


def test_it_stays_out_of_peoples_way(start: Callable[..., tuple[Running, str]]) -> None:
    """One at a time, none while others chat, and a slow one is no longer than what it stands beside."""
    running, _ = start(KUDOS_MAX_SHADOW_STREAMS="1", KUDOS_SHADOW_BELOW_STREAMS="1", FAKE_TOKEN_SECONDS="0.05")
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    with running.client("ann") as ann, running.client("bob") as bob:
        with ann.stream("POST", "/v1/chat/completions", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            began = time.monotonic()
            ask(bob)
            assert time.monotonic() - began < 5
            assert count(running, "dropped") == 1, "bob's, as ann was being answered"
            list(lines)
        wait_for(lambda: count(running, "complete") == 1, 30, "ann's")
        with ann.stream("POST", "/v1/chat/completions", json=body) as stopped:
            next(stopped.iter_lines())
        wait_for(lambda: count(running, "discarded") == 1, 30, "what was stopped is no length to compare with")
    assert [row.user_id for row in shadows(running)] == ["operator/ann"]


def test_from_shadow_to_a_few_users_by_itself(start: Callable[..., tuple[Running, str]]) -> None:
    running, candidate = start(KUDOS_ROLLOUT_AUTOMATIC="true", KUDOS_MAX_SHADOW_STREAMS="8")
    with running.client() as client:
        body = client.get("/v1/rollouts/current").json()
        assert body["state"] == "shadow"
        assert "replies in shadow" in body["decision"]["reason"]
        assert {each["name"] for each in body["decision"]["guardrails"]} >= {"first_token", "length"}
        assert body["plan"]["shadow_replies"] == 5
        for user in range(32):
            _ask_as(running, f"u{user}")
        wait_for(lambda: client.get("/v1/rollouts/current").json()["state"] == "canary", 30, "the first step")
        body = client.get("/v1/rollouts/current").json()
        assert (body["share"], body["events"][0]["actor"]) == (0.05, "controller")
        arms = {row["arm"]: row for row in body["evidence"]["served"] if row["share"] == 0.0}
        assert 30 <= arms["shadow"]["users"] == arms["shadow"]["replies"] == arms["stable"]["users"] <= 32
        now = client.get("/v1/policies").json()["wanted"]
        assert (now["candidate"], now["shadow"]) == (candidate, None)


def _ask_as(running: Running, user: str) -> None:
    with running.client(user) as client:
        ask(client)


def test_damage_in_shadow_hurts_nobody(start: Callable[..., tuple[Running, str]], tmp_path: Path) -> None:
    """An engine that dies in the middle of both fails the person's reply as it would have anyway."""
    switch = tmp_path / "dead"
    running, _ = start(FAKE_ENGINE_DEAD=str(switch), FAKE_TOKEN_SECONDS="0.05")
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    with running.client("ann") as ann, ann.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        switch.touch()
        assert any("error" in line for line in lines)
    wait_for(lambda: count(running, "failed") == 1, 30, "the shadow's end")
    wait_for(running.ready, 30, "the engine to be started again")
    [row] = shadows(running)
    assert row.state == "failed"
    with httpx.Client(base_url=running.url) as client:
        assert client.get("/health/live").status_code == 200
