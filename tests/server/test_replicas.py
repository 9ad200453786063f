"""Three servers on one PostgreSQL: each follows what is wanted by itself, and all say the same of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlmodel import func, select

from deploy import policies
from deploy.artifacts import Published
from deploy.gate import Verdict
from feedback.schema import Policy, Reply
from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.deploy.folders import make_model, publish_adapter
from tests.server.conftest import ForkedServer, Running, Zygote, ask, wait_for

pytestmark = pytest.mark.postgres

FOLLOWS_SECONDS = 5.0
SLOW_LOAD = "1.2"


class Replicas:
    """One home folder and one database, as servers behind a load balancer have them."""

    def __init__(self, zygote: Zygote, home: Path, base: Path, store: Store, url: str) -> None:
        self.home, self.base, self.store = home, base, store
        common = {"KUDOS_DATABASE_URL": url, "KUDOS_MODEL": str(base), "KUDOS_ROLLOUT_LOOK_SECONDS": "1"}
        self.servers = [ForkedServer(zygote, home, **common, FAKE_LOAD_SECONDS=SLOW_LOAD) for _ in range(3)]
        self.running: list[Running] = []

    def start(self) -> None:
        self.running = [Running(each.start().url, self.home, self.store, each.process_id) for each in self.servers]

    def publish(self, number: int) -> Published:
        published = publish_adapter(self.base, self.home / "policies", self.home / "scratch", number, seed=number)
        with self.store.write() as session:
            parent = session.exec(select(Policy).where(Policy.kind == "base")).one().version
            policies.register(session, published, parent=parent, verdict=Verdict(accepted=True, refusals=[], flags=[]))
        return published

    def follow(self, what: Callable[[dict[str, Any]], bool], of: list[int] | None = None) -> float:
        """Seconds until each of them says so of itself."""
        began, slowest = time.monotonic(), 0.0
        for at in of or range(len(self.running)):
            with self.running[at].client() as client:
                wait_for(lambda client=client: what(wanted(client)), 30, "a server to follow")
            slowest = max(slowest, time.monotonic() - began)
        return slowest


def wanted(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/v1/policies").json()["wanted"])


@pytest.fixture
def three(zygote: Zygote, postgres_url: str, tmp_path: Path) -> Iterator[Replicas]:
    home, base = tmp_path / "home", make_model(tmp_path / "base")
    store = open_store(Settings(home=home, database_url=SecretStr(postgres_url)))
    found = Replicas(zygote, home, base, store, postgres_url)
    found.start()
    yield found
    for server in found.servers:
        server.kill()
        server.store.close()
    store.close()


def test_all_follow_each_step_and_one_that_was_killed_in_the_middle(three: Replicas) -> None:
    first, second = three.publish(1).version, three.publish(2).version
    with three.running[0].client() as client:
        base = wanted(client)["stable"]
        began = time.monotonic()
        assert client.post("/v1/rollouts", json={"version": first, "share": 0.5}).status_code == 200
        # One of them dies while it loads the adapter, which takes a while here.
        wait_for(lambda: standing(three.running[2]) != {"in_step": 3.0}, 5, "somebody to be behind, by the metric")
        time.sleep(0.7)  # it has looked by now, and is not done
        three.servers[1].kill()
        three.follow(lambda now: first in now["holds"], of=[0, 2])
        assert time.monotonic() - began < FOLLOWS_SECONDS
        assert {met(three.running[at], user) for at in (0, 2) for user in ("ann", "bob")} <= {base, first}
        for user in (f"user{n}" for n in range(8)):
            assert met(three.running[0], user) == met(three.running[2], user), "the same user meets the same policy"
        for action, serves in (("promote", first), ("rollback", base)):
            began = time.monotonic()
            assert client.post(f"/v1/rollouts/current/{action}").status_code == 200
            three.follow(lambda now, serves=serves: now["serving"] == serves, of=[0, 2])
            assert time.monotonic() - began < FOLLOWS_SECONDS, action
        assert client.post("/v1/rollouts", json={"version": second, "share": 1.0}).status_code == 200
        assert client.post("/v1/rollouts/current/promote").status_code == 200
        # The dead one comes back on what serves now, not on what it was loading.
        three.servers[1].start()
        taken = three.follow(lambda now: now["serving"] == second and first not in now["holds"])
        assert taken < FOLLOWS_SECONDS
        wait_for(lambda: standing(three.running[0]) == {"in_step": 3.0}, 10, "all to be in step, by their rows")
        rows = client.get("/v1/rollouts/current").json()["replicas"]
    assert {row["standing"] for row in rows} == {"in_step"}
    assert {met(running, "ann") for running in three.running} == {second}


def test_all_tell_the_same_of_what_was_said_to_any_of_them(three: Replicas) -> None:
    candidate = three.publish(1).version
    with ExitStack() as stack:
        clients = [stack.enter_context(running.client("ann")) for running in three.running]
        base = wanted(clients[0])["stable"]
        assert (
            clients[0].put("/v1/matchup", json={"first_version": base, "second_version": candidate}).status_code == 200
        )
        three.follow(lambda now: candidate in now["holds"])
        for turn in range(6):
            client = clients[turn % 3]
            body = {"messages": [{"role": "user", "content": "hello"}]}
            duel = client.post("/v1/comparisons", json=body).json()
            other = clients[(turn + 1) % 3]  # a vote may come to another server than the one that answered
            assert other.put(f"/v1/comparisons/{duel['id']}/choice", json={"choice": "left"}).status_code == 200
            reply = ask(client)
            assert other.put(f"/v1/replies/{reply['id']}/feedback", json={"thumb": "up"}).status_code == 200
        boards = [client.get("/v1/leaderboard").json() for client in clients]
    assert boards[0]["pairs"][0]["votes"] == boards[0]["choices"] == 6
    assert boards[0] == boards[1] == boards[2]
    assert {running.metric("kudos_feedback_effective_votes") for running in three.running} == {12.0}
    accepted = sum(running.metric("kudos_feedback_votes_total", result="accepted") for running in three.running)
    with three.store.read() as session:
        replies = session.exec(select(func.count()).select_from(Reply)).one()
    told = sum(running.metric("kudos_chat_replies_total", state="complete") for running in three.running)
    assert (accepted, told) == (12, replies)


def standing(running: Running) -> dict[str, float]:
    found = {state: running.metric("kudos_replicas", state=state) for state in ("in_step", "behind", "silent")}
    return {state: count for state, count in found.items() if count}


def met(running: Running, user: str) -> str:
    with running.client(user) as client:
        return str(ask(client)["system_fingerprint"])
