"""The server watches its rollout: harm goes back by itself, an operator can hold, and the metrics say what was seen."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlmodel import select

from deploy import controller
from deploy.settings import read_plan
from feedback.schema import Policy, PolicyKind, Thumb
from server.errors import BadConfiguration
from server.run import serving
from server.settings import Settings
from tests.deploy.rows import add_policy, serve
from tests.server.conftest import ForkedServer, Running, wait_for
from tests.server.fake_engine import FakeEngine

Make = Callable[..., ForkedServer]


@pytest.fixture
def running(forked: Make) -> Running:
    return forked(KUDOS_ROLLOUT_LOOK_SECONDS="0.1", KUDOS_ROLLOUT_MIN_MINUTES="0").start()


def a_canary(running: Running, client: httpx.Client) -> tuple[str, str]:
    """The base's version, and that of a candidate that half of all users should meet."""
    with running.store.write() as session:
        base = session.exec(select(Policy)).one().version
        version = add_policy(session, 1, PolicyKind.ADAPTER, base=base)
    answer = client.post("/v1/rollouts", json={"version": version, "share": 0.5})
    assert answer.status_code == 200, answer.text
    return base, version


def votes(running: Running, base: str, version: str, thumb: Thumb) -> None:
    with running.store.write() as session:
        for user in range(30):
            serve(session, f"c{user}", version, 0.5, candidate=True, thumbs=[thumb])
            serve(session, f"s{user}", base, 0.5, candidate=False, thumbs=[Thumb.UP])


def test_harm_rolls_back_by_itself(running: Running) -> None:
    with running.client() as client:
        base, version = a_canary(running, client)
        body = client.get("/v1/rollouts/current").json()
        assert (body["held"], body["decision"]["verdict"]) == (False, "hold")
        wait_for(lambda: math.isnan(running.metric("kudos_rollout_effect", metric="net_votes")), 30, "a look")
        votes(running, base, version, Thumb.DOWN)
        wait_for(lambda: client.get("/v1/rollouts/current").status_code == 404, 30, "the candidate to be rolled back")
        assert client.get("/v1/rollouts/current").json()["error"]["code"] == "no_rollout"
        assert running.metric("kudos_rollout_decisions_total", decision="roll_back") == 1
        assert running.metric("kudos_rollout_sample_ratio_mismatch") == 0


@pytest.mark.parametrize("watch", ["true", "false"])
def test_arms_that_have_not_their_users_are_told_after_it_went_back(forked: Make, watch: str) -> None:
    """Also by servers that leave the acting to another process, which are then the only ones that tell."""
    plan = {"KUDOS_ROLLOUT_LOOK_SECONDS": "0.1", "KUDOS_ROLLOUT_WATCH": watch}
    running = forked(**plan).start()
    with running.client() as client:
        base, version = a_canary(running, client)
        with running.store.write() as session:
            for user in range(60):
                serve(session, f"c{user}", version, 0.5, candidate=True)
            serve(session, "s", base, 0.5, candidate=False)
        mismatch = lambda: running.metric("kudos_rollout_sample_ratio_mismatch") == 1  # noqa: E731
        wait_for(mismatch, 30, "the alarm")
        if watch == "false":
            assert client.get("/v1/rollouts/current").status_code == 200, "it does not act"
            controller.look(running.store, read_plan())
        wait_for(lambda: client.get("/v1/rollouts/current").status_code == 404, 30, "the candidate to be rolled back")
        time.sleep(0.5)
        assert mismatch(), "an alert must have the time to see it"
        a_canary_again = client.post("/v1/rollouts", json={"version": version, "share": 0.5, "reason": "mended"})
        assert a_canary_again.status_code == 200
        wait_for(lambda: not mismatch(), 30, "the alarm to end with the next rollout")


def test_an_operator_holds_and_resumes(running: Running) -> None:
    with running.client() as client:
        assert client.post("/v1/rollouts/current/hold").status_code == 409
        base, version = a_canary(running, client)
        answer = client.post("/v1/rollouts/current/hold", json={"reason": "lunch"})
        assert (answer.status_code, answer.json()["share"]) == (200, 0.5)
        body = client.get("/v1/rollouts/current").json()
        assert body["held"]
        assert body["events"][0]["action"] == "hold"
        assert body["decision"]["reason"].startswith("held by ")
        again = client.post("/v1/rollouts/current/hold")
        assert again.status_code == 409
        assert "held already" in again.json()["error"]["message"]
        assert client.post("/v1/rollouts/current/hold", json={"share": 0.9}).status_code == 422
        assert client.post("/v1/rollouts/current/resume").status_code == 200
        assert client.get("/v1/rollouts/current").json()["held"] is False
        assert client.post("/v1/rollouts/current/resume").status_code == 409
        votes(running, base, version, Thumb.UP)
        wait_for(lambda: running.metric("kudos_rollout_effect", metric="net_votes", bound="upper") > 0, 30, "a look")
        assert running.metric("kudos_rollout_effect", metric="net_votes", bound="lower") < 0
        assert running.metric("kudos_rollout_effect", metric="net_votes", bound="estimate") == 0
        assert client.get("/v1/rollouts/current").json()["share"] == 0.5, "approval is by hand"


async def test_a_plan_that_cannot_be_is_refused_before_the_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUDOS_ROLLOUT_ALPHA", "2")
    engine = FakeEngine()
    with pytest.raises(BadConfiguration, match="KUDOS_ROLLOUT_ALPHA"):
        async with serving(Settings(home=tmp_path), engine):
            pass
    assert engine.starts == 0
