"""Automatic matchups over HTTP: which pairs are drawn, with which probability, and that it is what was logged."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlmodel import select

from deploy import policies
from deploy.gate import Verdict
from feedback.schema import Comparison, Policy, Reply
from tests.deploy.folders import make_model, publish_adapter
from tests.server.conftest import ForkedServer, Running, wait_for

Make = Callable[..., ForkedServer]
UNIFORM = 0.3


@pytest.fixture
def held(forked: Make, tmp_path: Path) -> tuple[Running, list[str]]:
    """A server that looks often, and the versions of a base and of two adapters on it."""
    base = make_model(tmp_path / "base")
    plan = {"KUDOS_ROLLOUT_LOOK_SECONDS": "0.1", "KUDOS_ROLLOUT_UNIFORM_PAIRS": str(UNIFORM)}
    running = forked(KUDOS_MODEL=str(base), KUDOS_MAX_LORAS="3", **plan).start()
    with running.store.read() as session:
        versions = [session.exec(select(Policy)).one().version]
    for number in (1, 2):
        published = publish_adapter(base, running.home / "policies", tmp_path, number, seed=number)
        with running.store.write() as session:
            policies.register(
                session, published, parent=versions[0], verdict=Verdict(accepted=True, refusals=[], flags=[])
            )
        versions.append(published.version)
    return running, versions


def draws(client: httpx.Client) -> dict[tuple[str, str], float]:
    pairs = client.get("/v1/leaderboard").json()["draws"]["pairs"]
    return {(pair["first"], pair["second"]): pair["probability"] for pair in pairs}


def compare(running: Running, user: str) -> str:
    with running.client(user) as client:
        duel = client.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "hello"}]}).json()
        assert client.put(f"/v1/comparisons/{duel['id']}/choice", json={"choice": "left"}).status_code == 200
    return str(duel["id"])


def test_pairs_are_drawn_as_they_are_said_to_be(held: tuple[Running, list[str]]) -> None:
    running, versions = held
    with running.client() as client:
        pool = {"automatic": True, "versions": versions}
        body = client.put("/v1/matchup", json=pool).json()
        assert (body["automatic"], body["versions"], body["first_version"]) == (True, versions, None)
        wait_for(lambda: client.get("/v1/matchup").json()["ready"], 30, "all three to be held")
        wait_for(lambda: len(draws(client)) == 3, 30, "three pairs")
        wait_for(lambda: max(draws(client).values()) > 0.5, 30, "the pair that tells most to be known")
        found = draws(client)
        assert sum(found.values()) == pytest.approx(1.0)
        assert sorted(found.values())[:2] == pytest.approx([UNIFORM / 3, UNIFORM / 3])
        ids = [compare(running, f"user{at}") for at in range(12)]
        with running.store.read() as session:
            for comparison in (session.get_one(Comparison, each) for each in ids):
                sides = [comparison.left_reply_id, comparison.right_reply_id]
                assert len({session.get_one(Reply, side).policy_version for side in sides}) == 2
                assert comparison.propensity in (
                    pytest.approx(UNIFORM / 6),
                    pytest.approx((1 - UNIFORM * 2 / 3) / 2),
                ), "the pair's probability, and half of it for the sides"
        board = client.get("/v1/leaderboard").json()
        assert (board["choices"], board["draws"]["held"]) == (12, sorted(versions))
        # A rollout comes first: its own pair is the one that is drawn most.
        assert client.post("/v1/rollouts", json={"version": versions[2], "share": 0.5}).status_code == 200
        own = (min(versions[0], versions[2]), max(versions[0], versions[2]))
        wait_for(lambda: draws(client)[own] == pytest.approx(1 - UNIFORM * 2 / 3), 30, "the rollout's pair")
        assert client.put("/v1/matchup", json={}).status_code == 200
        wait_for(lambda: draws(client) == {}, 30, "pairs to be drawn no more")


def test_what_cannot_be_drawn_from_is_refused(held: tuple[Running, list[str]]) -> None:
    running, versions = held
    with running.client() as client:
        for body, status, words in (
            ({"automatic": True, "first_version": versions[0]}, 409, "or automatic"),
            ({"automatic": True, "versions": versions[:1]}, 409, "two policies or more"),
            ({"automatic": True, "versions": [*versions, versions[0]]}, 422, "KUDOS_MAX_LORAS"),
            ({"automatic": True, "versions": [versions[0], "v9-00000009"]}, 404, "no policy 'v9-00000009'"),
        ):
            answer = client.put("/v1/matchup", json=body)
            assert answer.status_code == status
            assert words in answer.json()["error"]["message"]
        empty = client.get("/v1/leaderboard").json()
        assert (empty["data"], empty["pairs"], empty["effects"]) == ([], [], None)
        assert client.get("/v1/leaderboard", params={"by": "taste"}).status_code == 422
        assert client.get("/v1/leaderboard", params={"by": "prompt"}).json()["by"] == "prompt"
