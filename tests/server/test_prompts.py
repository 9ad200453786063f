"""System prompts as versions over HTTP: who gets which, what the log says of it, and what users see."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from feedback.samples import collect
from feedback.schema import Comparison, Reply
from server.identity import create_key
from server.prompt_cli import app as prompt_cli
from server.system_prompts import Chosen, InUse
from tests.server.conftest import ForkedServer, Running, ask

Make = Callable[..., ForkedServer]
WARM, BRIEF = "Be warm.", "Be brief."


def test_users_keep_their_arm_and_shares_follow_the_weights() -> None:
    arms = (Chosen("a@1", "a", 0.2), Chosen("a@2", "b", 0.3), Chosen("b@1", "c", 0.5))
    use = InUse("salt", arms)
    users = [f"user-{number}" for number in range(4000)]
    drawn = {user: use.of(user) for user in users}
    assert drawn == {user: use.of(user) for user in users}
    shares = Counter(chosen.version for chosen in drawn.values() if chosen)
    for arm in arms:
        assert abs(shares[arm.version] / len(users) - arm.propensity) < 0.03
    assert InUse("salt", ()).of("user-1") is None
    assert InUse("salt", arms[:1]).of("user-1") == arms[0]
    more = InUse("salt", (Chosen("a@1", "a", 0.4), Chosen("a@2", "b", 0.6)))
    before = InUse("salt", (Chosen("a@1", "a", 0.2), Chosen("a@2", "b", 0.8)))
    kept = [user for user in users if before.of(user).version == "a@1"]  # type: ignore[union-attr]
    assert all(more.of(user).version == "a@1" for user in kept)  # type: ignore[union-attr]
    pairs = Counter((left.version, right.version) for left, right in (use.two(random.Random(n)) for n in range(600)))  # type: ignore[misc]
    assert len(pairs) == 6
    assert {chosen.propensity for chosen in use.two(random.Random(1)) or ()} == {1 / 6}


@pytest.fixture
def running(forked: Make) -> Running:
    return forked().start()


def row(running: Running, reply_id: str) -> Reply:
    with running.store.read() as session:
        reply = session.get(Reply, reply_id)
    assert reply is not None
    return reply


def post(client: httpx.Client, name: str, text: str) -> dict[str, Any]:
    answer = client.post("/v1/prompts", json={"name": name, "text": text})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def use(client: httpx.Client, *arms: Any, **fields: Any) -> dict[str, Any]:
    body = {"arms": [{"version": version, "weight": weight} for version, weight in arms], **fields}
    answer = client.put("/v1/prompts/use", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_operators_prompt_comes_first_and_is_logged(running: Running) -> None:
    with running.client() as operator, running.client("alice") as alice:
        plain = row(running, ask(alice)["id"])
        assert (plain.prompt_version, plain.prompt_propensity) == (None, None)
        assert post(operator, "shop", WARM)["id"] == "shop@1"
        again = post(operator, "shop", WARM)
        assert (again["id"], again["new"]) == ("shop@1", False)
        used = use(operator, ("shop", 1))
        assert used in operator.get("/v1/prompts/use").json()["data"]
        assert used["arms"] == [{"version": "shop@1", "weight": 1.0}]
        assert "salt" not in used
        first = ask(alice)
        reply = row(running, first["id"])
        assert (reply.prompt_version, reply.prompt_propensity) == ("shop@1", 1.0)
        assert reply.messages == [{"role": "system", "content": WARM}, {"role": "user", "content": "Hello!"}]
        assert reply.prompt_digest != plain.prompt_digest
        # A client's own is left alone.
        mine = {"messages": [{"role": "developer", "content": "Mine."}, {"role": "user", "content": "hi"}]}
        own = row(running, alice.post("/v1/chat/completions", json=mine).json()["id"])
        assert (own.prompt_version, own.messages[0]["content"]) == (None, "Mine.")
        # A conversation goes on with the prompt of now, once.
        post(operator, "shop", BRIEF)
        use(operator, ("shop@2", 1))
        going_on = row(running, ask(alice, "And now?", conversation_id=first["conversation_id"])["id"])
        assert going_on.prompt_version == "shop@2"
        assert [message["role"] for message in going_on.messages] == ["system", "user", "assistant", "user"]
        assert going_on.messages[0]["content"] == BRIEF
        # What it says is the operator's: users see what they and the model said.
        seen = alice.get(f"/v1/conversations/{first['conversation_id']}").text + alice.get("/v1/me/export").text
        assert WARM not in seen
        assert BRIEF not in seen
        assert "Mine." in seen
        assert alice.get(f"/v1/replies/{first['id']}").json()["messages"] == [{"role": "user", "content": "Hello!"}]
        use(operator)
        assert row(running, ask(alice)["id"]).prompt_version is None


def test_a_key_has_its_own(running: Running) -> None:
    with running.store.write() as session:
        key, secret = create_key(session, label="shop", scopes=["chat", "operator", "on_behalf"])
    with running.client() as operator, running.client("ann", key=secret) as shop, running.client("alice") as alice:
        post(operator, "shop", WARM)
        post(operator, "talk", BRIEF)
        use(operator, ("talk", 1))
        use(operator, ("shop", 1), key_id=key.id)
        assert row(running, ask(shop)["id"]).prompt_version == "shop@1"
        assert row(running, ask(alice)["id"]).prompt_version == "talk@1"
        listed = operator.get("/v1/prompts").json()
        assert [each["id"] for each in listed["data"]] == ["shop@1", "talk@1"]
        assert {each["key_id"] for each in listed["uses"]} == {None, key.id}
        assert operator.put("/v1/prompts/use", json={"arms": None, "key_id": key.id}).status_code == 200
        assert row(running, ask(shop)["id"]).prompt_version == "talk@1"


def test_an_experiment_compares_prompts_and_trains_on_replies_to_one_question_alone(running: Running) -> None:
    with running.client() as operator:
        post(operator, "shop", WARM)
        post(operator, "shop", BRIEF)
        use(operator, ("shop@1", 1), ("shop@2", 1))
        versions = Counter()
        for number in range(12):
            with running.client(f"user-{number}") as user:
                replies = [row(running, ask(user)["id"]) for _ in range(2)]
                assert replies[0].prompt_version == replies[1].prompt_version
                assert replies[0].prompt_propensity == 0.5
                versions[replies[0].prompt_version] += 1
                user.put(f"/v1/replies/{replies[0].id}/feedback", json={"thumb": "up"})
        assert set(versions) == {"shop@1", "shop@2"}
        with running.client("eve") as eve:
            body = eve.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "Hello!"}]}).json()
            eve.put(f"/v1/comparisons/{body['id']}/choice", json={"choice": "left"})
        left, right = row(running, body["left"]["id"]), row(running, body["right"]["id"])
        assert {left.prompt_version, right.prompt_version} == {"shop@1", "shop@2"}
        assert left.policy_version == right.policy_version
        with running.store.read() as session:
            comparison = session.get(Comparison, body["id"])
            samples = collect(session, consent_default=True)
        assert comparison is not None
        assert comparison.propensity == 0.5
        assert len(samples.thumbs) == 12
        assert samples.pairs == [], "its two sides answer different messages"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/prompts", {"name": "A b", "text": "x"}, 422),
        ("POST", "/v1/prompts", {"name": "a", "text": " "}, 422),
        ("POST", "/v1/prompts", {"name": "a"}, 422),
        ("POST", "/v1/prompts", {"name": "use", "text": "x"}, 422),
        ("GET", "/v1/prompts/none", None, 404),
        ("PUT", "/v1/prompts/use", {"arms": [{"version": "none"}]}, 404),
        ("PUT", "/v1/prompts/use", {"arms": [{"version": "none", "weight": 0}]}, 422),
        ("PUT", "/v1/prompts/use", {"arms": None}, 422),
        ("PUT", "/v1/prompts/use", {"arms": [], "key_id": "key-none"}, 404),
        ("PUT", "/v1/prompts/use", {}, 422),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(running: Running, method: str, path: str, body: Any, status: int) -> None:
    with running.client() as operator:
        answer = operator.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_the_command_line(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_HOME", str(running.home))
    monkeypatch.setenv("COLUMNS", "120")

    def kudos(*arguments: str, text: str | None = None, code: int = 0) -> str:
        result = CliRunner().invoke(prompt_cli, arguments, input=text)
        assert result.exit_code == code, result.output
        return result.output

    assert kudos("add", "shop", "-", text=f"{WARM}\n") == "shop@1\n"
    assert "already" in kudos("add", "shop", "-", text=WARM)
    assert kudos("show", "shop") == f"{WARM}\n"
    assert "100% shop@1" in kudos("use", "shop")
    listed = kudos("list")
    assert "shop@1" in listed
    assert "100% of all others" in listed
    with running.client("alice") as alice:
        assert row(running, ask(alice)["id"]).prompt_version == "shop@1"
    assert "shop=0.5" in kudos("use", "shop=much", code=2)
    assert "there is no prompt" in kudos("show", "talk", code=2)
    assert "there is no key" in kudos("use", "shop", "--key", "key-none", code=2)
    assert "name versions" in kudos("use", "shop", "--none", code=2)
    assert "no prompt" in kudos("use", "--none")
