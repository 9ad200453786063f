"""The real engine takes, proves, swaps and refuses policies while people chat. Nothing they stream is lost."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from deploy.artifacts import Published
from feedback.schema import Comparison, Policy, PolicyKind, Reply
from tests.server.conftest import START_SECONDS, RealServer, Running, ask, events, wait_for
from tests.server.policies import damage, publish

pytestmark = pytest.mark.engine

SECONDS = 60.0  # for a replica to follow a decision; it takes well under one when the machine is not busy


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of its own: these tests decide what everybody is served."""
    server = RealServer(
        tmp_path_factory.mktemp("rollout") / "home",
        KUDOS_SWAP_WAIT_SECONDS="0.1",
        KUDOS_FOLD_AFTER_SECONDS="1",
        KUDOS_FOLD_WAIT_SECONDS="8",
    )
    try:
        yield server.start()
    finally:
        server.end()


@pytest.fixture(autouse=True)
def back_to_base(replica: Running) -> Iterator[None]:
    yield
    with replica.client() as client:
        client.put("/v1/matchup", json={})
        while client.post("/v1/rollouts/current/rollback", json={"reason": "end of a test"}).status_code == 200:
            pass
        wait_for(lambda: holds(client)["serving"].startswith("v0-"), SECONDS, "the base to serve again")


def holds(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/v1/policies").json()["wanted"])


def start(client: httpx.Client, version: str, share: float) -> None:
    answer = client.post("/v1/rollouts", json={"version": version, "share": share})
    assert answer.status_code == 200, answer.text


@dataclass
class Traffic:
    """What a crowd that chats all the time has seen."""

    finished: int = 0
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    longest_gap_seconds: float = 0.0


@contextmanager
def crowd(replica: Running, streams: int, max_tokens: int = 150) -> Iterator[Traffic]:
    traffic, stop = Traffic(), threading.Event()

    def chat(user: str) -> None:
        body = {
            "messages": [{"role": "user", "content": "Go on"}],
            "temperature": 2.0,
            "max_tokens": max_tokens,
            "stream": True,
        }
        with replica.client(user) as client:
            while not stop.is_set():
                try:
                    with client.stream("POST", "/v1/chat/completions", json=body) as response:
                        assert response.status_code == 200, response.read()
                        at, done = time.monotonic(), False
                        for event in events(response):
                            now = time.monotonic()
                            traffic.longest_gap_seconds = max(traffic.longest_gap_seconds, now - at)
                            at = now
                            if event == "[DONE]":
                                done = True
                                break
                            assert "error" not in event, event
                            traffic.versions.add(event["system_fingerprint"])
                        assert done, "no [DONE]"
                        traffic.finished += 1
                except (AssertionError, httpx.HTTPError) as error:
                    traffic.failures.append(repr(error))

    threads = [threading.Thread(target=chat, args=(f"crowd{at}",), daemon=True) for at in range(streams)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: traffic.finished > 0 or traffic.failures, SECONDS, "the crowd to chat")
        yield traffic
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)


def three_answers(replica: Running, name: str) -> list[str]:
    """Whose they are."""
    with replica.client(name) as user:
        return [ask(user, max_tokens=2)["system_fingerprint"] for _ in range(3)]


def test_an_adapter_is_rolled_out_under_traffic(replica: Running) -> None:
    published = publish(replica, seed=11)
    with replica.client() as client, crowd(replica, 32) as traffic:  # the probe is scored beside all of them
        start(client, published.version, 0.5)
        wait_for(lambda: published.version in holds(client)["holds"], SECONDS, "the candidate to be held")
        wait_for(lambda: published.version in traffic.versions, SECONDS, "somebody to meet the candidate")
        with ThreadPoolExecutor(8) as people:
            met = list(people.map(lambda at: three_answers(replica, f"user{at}"), range(40)))
        assert all(second == third for _, second, third in met), "a user stays with one arm"
        served = Counter(first for first, _, _ in met)
        assert 8 <= served[published.version] <= 32, served
        assert client.post("/v1/rollouts/current/promote").status_code == 200
        wait_for(lambda: holds(client)["serving"] == published.version, SECONDS, "the candidate to serve all")
        assert {ask(client, max_tokens=2)["system_fingerprint"] for _ in range(3)} == {published.version}
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
        wait_for(lambda: holds(client)["serving"].startswith("v0-"), SECONDS, "the base to serve again")
        assert ask(client, max_tokens=2)["system_fingerprint"].startswith("v0-")
    assert traffic.failures == []
    with replica.store.read() as session:
        rows = session.exec(select(Reply).where(Reply.policy_version == published.version)).all()
        assert {(row.arm, row.propensity) for row in rows} >= {("canary", 0.5)}
        assert all(row.mixed_versions is None for row in rows)


def test_a_matchup_decides_who_is_compared(replica: Running) -> None:
    published = publish(replica, seed=12)
    with replica.client() as client:
        base = holds(client)["serving"]
        client.put("/v1/matchup", json={"first_version": base, "second_version": published.version})
        wait_for(lambda: client.get("/v1/matchup").json()["ready"], SECONDS, "both policies to be held")
        sides: Counter[tuple[str, str]] = Counter()
        wins = 0
        for _ in range(16):
            pair = client.post(
                "/v1/comparisons", json={"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3}
            ).json()
            answer = client.put(f"/v1/comparisons/{pair['id']}/choice", json={"choice": "left"}).json()
            sides[answer["revealed"]["left"], answer["revealed"]["right"]] += 1
            wins += answer["revealed"]["left"] == base
        assert set(sides) == {(base, published.version), (published.version, base)}, "sides are drawn"
        found = client.get("/v1/leaderboard").json()
        row = next(each for each in found["pairs"] if {each["first"], each["second"]} == {base, published.version})
        assert (row["first_wins"], row["second_wins"], row["votes"]) == (wins, 16 - wins, 16)
        assert {each["name"] for each in found["data"]} >= {base, published.version}
        assert found["draws"] == {"automatic": False, "held": [], "pairs": []}
        pool = {"automatic": True, "versions": [base, published.version]}
        assert client.put("/v1/matchup", json=pool).json()["ready"]
        wait_for(
            lambda: client.get("/v1/leaderboard").json()["draws"]["automatic"], SECONDS, "the pool to be drawn from"
        )
        drawn = client.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
        assert drawn.status_code == 200
        with replica.store.read() as session:
            comparison = session.get_one(Comparison, drawn.json()["id"])
            sides = {session.get_one(Reply, side).policy_version for side in drawn_sides(comparison)}
        assert (comparison.propensity, sides) == (0.5, {base, published.version})
        assert ask(client, max_tokens=2)["system_fingerprint"] == base, "a matchup changes comparisons alone"


def drawn_sides(comparison: Comparison) -> list[str]:
    return [comparison.left_reply_id, comparison.right_reply_id]


@pytest.mark.parametrize(
    ("change", "error"),
    [("truncate", "Truncated"), ("flip", "WrongDigest"), ("pickle", "Pickle"), ("missing", "MissingFile")],
)
def test_a_damaged_folder_is_refused_while_the_server_goes_on(replica: Running, change: str, error: str) -> None:
    published = publish(replica, seed=13)
    weights = published.path / "adapter_model.safetensors"
    if change == "pickle":
        published.path.chmod(0o755)
        (published.path / "extra.pkl").write_bytes(b"\x80\x04K\x01.")
    elif change == "missing":
        published.path.chmod(0o755)
        weights.unlink()
    else:
        damage(weights, change)
    with replica.client() as client, crowd(replica, 2) as traffic:
        start(client, published.version, 1.0)
        problem = wait_for(
            lambda: holds(client)["problems"].get(published.version), SECONDS, "the folder to be refused"
        )
        assert problem.startswith(error)
        assert published.version not in holds(client)["holds"]
        # Refused in the process first, told in its row a moment later.
        wait_for(
            lambda: any(
                published.version in row["problems"] for row in client.get("/v1/rollouts/current").json()["replicas"]
            ),
            SECONDS,
            "the replica's row to name the problem",
        )
        assert ask(client, max_tokens=2)["system_fingerprint"].startswith("v0-")
        assert replica.ready()
    assert traffic.failures == []
    assert published.version not in traffic.versions


@pytest.mark.parametrize("kind", [PolicyKind.ADAPTER, PolicyKind.FULL])
def test_a_probe_that_does_not_match_is_refused(replica: Running, kind: PolicyKind) -> None:
    """The folder is whole, its weights are others than those that the probe was computed with."""
    honest = publish(replica, kind, seed=14)
    liar = republish(replica, honest, publish(replica, kind, seed=15, size=0.06))
    with replica.client() as client, crowd(replica, 4) as traffic:
        start(client, liar.version, 1.0)
        problem = wait_for(lambda: holds(client)["problems"].get(liar.version), SECONDS, "the probe to fail")
        assert problem.startswith("NotProved")
        wait_for(lambda: holds(client)["serving"].startswith("v0-"), SECONDS, "the base to serve")
        assert ask(client, max_tokens=2)["system_fingerprint"].startswith("v0-")
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
        start(client, honest.version, 1.0)
        wait_for(lambda: holds(client)["serving"] == honest.version, SECONDS, "the honest policy to serve")
    assert traffic.failures == []


def test_a_full_checkpoint_that_cannot_be_proved_leaves_the_promoted_adapter_serving(replica: Running) -> None:
    adapter = publish(replica, seed=21, size=0.05)
    honest = publish(replica, PolicyKind.FULL, seed=22)
    liar = republish(replica, adapter, honest)
    with replica.client() as client, crowd(replica, 4) as traffic:
        start(client, adapter.version, 1.0)
        wait_for(lambda: holds(client)["serving"] == adapter.version, SECONDS, "the adapter to serve")
        assert client.post("/v1/rollouts/current/promote").status_code == 200
        asked_before = traffic.finished + 12
        wait_for(lambda: traffic.finished > asked_before, SECONDS, "what the base had begun to end")
        traffic.versions.clear()
        start(client, liar.version, 1.0)
        problem = wait_for(lambda: holds(client)["problems"].get(liar.version), SECONDS, "the probe to fail")
        assert problem.startswith("NotProved")
        assert ask(client, max_tokens=2)["system_fingerprint"] == adapter.version
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
        assert ask(client, max_tokens=2)["system_fingerprint"] == adapter.version
        assert not any(version.startswith("v0-") for version in traffic.versions), "the base answered somebody"
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
    assert traffic.failures == []


def republish(replica: Running, probe_of: Published, weights_of: Published) -> Published:
    """A policy that is published properly, with the weights of one and the probe of the other."""
    from deploy import policies
    from deploy.artifacts import publish as publish_folder
    from deploy.gate import Verdict
    from deploy.manifest import Draft

    staging = replica.home / f"staging-{weights_of.version}"
    shutil.copytree(weights_of.path, staging, ignore=shutil.ignore_patterns("manifest.json"))
    with replica.store.read() as session:
        number = policies.next_number(session)
        parent = session.exec(select(Policy).where(Policy.kind == PolicyKind.BASE)).one().version
    fields = {name: getattr(weights_of.manifest, name) for name in Draft.model_fields}
    draft = Draft(**fields | {"number": number, "probe": probe_of.manifest.probe})
    published = publish_folder(staging, draft, replica.home / "policies")
    with replica.store.write() as session:
        policies.register(session, published, parent=parent, verdict=Verdict(True, [], []))
    return published


def test_full_checkpoints_swap_under_sixteen_streams(replica: Running) -> None:
    first, second = publish(replica, PolicyKind.FULL, seed=16), publish(replica, PolicyKind.FULL, seed=17, size=0.04)
    swaps = 0
    with replica.client() as client, crowd(replica, 16) as traffic:
        for version in (first.version, second.version, first.version):
            start(client, version, 1.0)
            wait_for(lambda version=version: holds(client)["serving"] == version, SECONDS, f"{version} to serve")
            assert client.post("/v1/rollouts/current/promote").status_code == 200
            swaps += 1
            wait_for(lambda version=version: version in traffic.versions, SECONDS, "the crowd to meet it")
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
        wait_for(lambda: holds(client)["serving"] == second.version, SECONDS, "the one before to serve again")
    assert traffic.failures == []
    assert traffic.finished > 16
    print(f"\n{swaps + 1} swaps under 16 streams; longest gap {traffic.longest_gap_seconds:.3f} s")
    with replica.store.read() as session:
        mixed = [row for row in session.exec(select(Reply)) if row.mixed_versions is not None]
    assert mixed, "streams were running, so some were cut in two"
    assert all(len(set(row.mixed_versions or [])) >= 2 for row in mixed)
    assert replica.metric("kudos_mixed_policy_replies_total") == len(mixed)


def test_no_policy_reads_the_prefix_cache_of_another(replica: Running) -> None:
    question = "What are your opening hours, and where can I find you? " * 20
    adapter, full = publish(replica, seed=18), publish(replica, PolicyKind.FULL, seed=19)

    def cached(client: httpx.Client) -> int:
        return int(ask(client, question, max_tokens=2)["usage"]["prompt_tokens_details"]["cached_tokens"])

    with replica.client() as client:
        cached(client)
        assert cached(client) > 0, "the same policy reads its own cache"
        for published in (adapter, full):
            start(client, published.version, 1.0)
            wait_for(lambda version=published.version: holds(client)["serving"] == version, SECONDS, "the swap")
            assert cached(client) == 0, published.manifest.kind
            assert cached(client) > 0
            assert client.post("/v1/rollouts/current/rollback").status_code == 200
            wait_for(lambda: holds(client)["serving"].startswith("v0-"), SECONDS, "the base to serve again")
            if published is full:
                assert cached(client) == 0, "and not after the way back"


def test_a_promoted_adapter_is_folded_while_it_is_alone(replica: Running) -> None:
    """Into the base's weights, out again for the next candidate, and that one in its turn; all of it under streams."""
    question = "What are your opening hours, and where can I find you? " * 20
    first, second = publish(replica, seed=21), publish(replica, seed=22, size=0.04)
    liar = republish(replica, first, second)

    def cached(client: httpx.Client) -> int:
        answer = ask(client, question, max_tokens=2)
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    def promote(client: httpx.Client, version: str) -> None:
        start(client, version, 1.0)
        wait_for(lambda: holds(client)["serving"] == version, SECONDS, f"{version} to serve")
        assert cached(client) == 0, "no other policy's keys and values are read"
        assert client.post("/v1/rollouts/current/promote").status_code == 200
        wait_for(lambda: holds(client)["folded"] == version, SECONDS, f"{version} to be folded")

    mixed = replica.metric("kudos_mixed_policy_replies_total")
    # Turns so short that they end while a fold waits for them, however busy the machine; longer ones would be cut.
    with replica.client() as client, crowd(replica, 16, max_tokens=12) as traffic:
        promote(client, first.version)
        assert holds(client)["holds"] == [first.version]
        assert cached(client) == 0, "nor what the same policy computed as an adapter"
        assert cached(client) > 0
        promote(client, second.version)
        [folder] = (replica.home / "folded").glob("*/v*")
        assert folder.name == second.version
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
        wait_for(lambda: holds(client)["folded"] == first.version, SECONDS, "the one before to be folded again")
        assert cached(client) == 0
        start(client, liar.version, 0.5)
        wait_for(lambda: liar.version in holds(client)["problems"], SECONDS, "the probe to fail")
        assert first.version in holds(client)["holds"], "beside the base, as the candidate needs it"
        assert client.post("/v1/rollouts/current/rollback").status_code == 200
        wait_for(lambda: holds(client)["folded"] == first.version, SECONDS, "it to be folded once more")
        assert holds(client)["problems"] == {}
    assert traffic.failures == []
    assert replica.metric("kudos_policy_swaps_total", kind="fold", result="proved") >= 4
    assert replica.metric("kudos_policy_swaps_total", kind="unfold", result="proved") >= 3
    assert replica.metric("kudos_mixed_policy_replies_total") == mixed
    assert traffic.versions >= {first.version, second.version}
    assert liar.version not in traffic.versions


def test_a_policy_that_the_gate_refused_does_not_start(replica: Running) -> None:
    refused = publish(replica, seed=20, accepted=False)
    with replica.client() as client:
        answer = client.post("/v1/rollouts", json={"version": refused.version})
        assert answer.status_code == 409
        assert client.post("/v1/rollouts", json={"version": "v99-00000000"}).status_code == 404
        line = client.get(f"/v1/policies/{refused.version}").json()
    assert line["state"] == "refused"
    assert line["refusals"] == ["for the test"]
    assert line["lineage"]["ancestors"][0].startswith("v0-")


@pytest.mark.timeout(4 * START_SECONDS)
def test_killed_in_mid_stream_and_started_again(tmp_path: Path) -> None:
    """The real engine's process goes with the server, and nothing of the half reply is voted on."""
    server = RealServer(tmp_path / "home")
    try:
        for _ in range(2):
            running = server.start()
            body = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 900, "stream": True}
            schema = {"type": "array", "items": {"type": "integer"}, "minItems": 400}  # it cannot end before the kill
            body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}}
            with running.client() as client, ExitStack() as stack:
                asked = [client.stream("POST", "/v1/chat/completions", json=body) for _ in range(4)]
                streams = [stack.enter_context(each) for each in asked]
                reply_ids = [next(events(stream))["id"] for stream in streams]
                server.kill()
            wait_for(lambda: engines_of(server) == [], 60, "the engine's process to go with the server")
        running = server.start()
        with running.store.read() as session:
            states = {reply_id: session.get_one(Reply, reply_id).state for reply_id in reply_ids}
        cut_off = [reply_id for reply_id, state in states.items() if state == "incomplete"]
        assert cut_off, "all replies ended before the kill"
        assert set(states.values()) <= {"incomplete", "complete"}
        with running.client() as client:
            assert client.put(f"/v1/replies/{cut_off[0]}/feedback", json={"thumb": "up"}).status_code == 409
            assert ask(client)["choices"][0]["message"]["content"]
    finally:
        server.end()


def engines_of(server: RealServer) -> list[int]:
    """Processes that are left of the server's session."""
    assert server.process is not None
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == server.process.pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
