"""A stored reply and its HTML over HTTP; and what a user may know of themselves."""

import pytest

from feedback.schema import Policy, Reply, TrainingSample
from tests.server.conftest import Running, ask, events

pytestmark = pytest.mark.engine


def test_a_reply_comes_with_its_html(real: Running) -> None:
    with real.client("reader") as client:
        asked = ask(client)
        reply = client.get(f"/v1/replies/{asked['id']}").json()
        text = asked["choices"][0]["message"]["content"]
        assert (reply["object"], reply["state"], reply["text"]) == ("reply", "complete", text)
        assert reply["conversation_id"] == asked["conversation_id"]
        assert reply["policy_version"] == asked["system_fingerprint"]
        assert reply["html"].startswith("<")
        stored = client.get(f"/v1/conversations/{asked['conversation_id']}").json()["replies"]
        assert [each["html"] for each in stored] == [reply["html"]]
        exported = client.get("/v1/me/export").json()["conversations"][0]["replies"][0]
        assert "html" not in {*exported, *asked, *asked["choices"][0], *asked["choices"][0]["message"]}


def test_nobody_elses_reply_and_none_of_a_deleted_conversation(real: Running) -> None:
    with real.client("owner") as client, real.client("stranger") as other:
        asked = ask(client)
        path = f"/v1/replies/{asked['id']}"
        assert other.get(path).status_code == client.get("/v1/replies/chatcmpl-none").status_code == 404
        client.delete(f"/v1/conversations/{asked['conversation_id']}")
        assert client.get(path).status_code == 404


def test_a_reply_that_is_being_written_has_no_html(real: Running) -> None:
    with real.client("early-reader") as client:
        reply_id = ask(client)["id"]
        with real.store.write() as session:
            reply = session.get(Reply, reply_id)
            assert reply is not None
            reply.state = "streaming"
        assert client.get(f"/v1/replies/{reply_id}").json()["html"] is None


def test_of_a_long_conversation_the_newest_replies_are_rendered(real: Running) -> None:
    with real.client("long-reader") as client:
        first = ask(client)
        for _ in range(6):
            ask(client, conversation_id=first["conversation_id"])
        with real.store.write() as session:
            for row in client.get(f"/v1/conversations/{first['conversation_id']}").json()["replies"]:
                reply = session.get(Reply, row["id"])
                assert reply is not None
                reply.text = "x" * 20_000
        replies = client.get(f"/v1/conversations/{first['conversation_id']}").json()["replies"]
        assert [reply["html"] is not None for reply in replies] == [False] * 2 + [True] * 5


def test_a_comparisons_reply_does_not_tell_its_policy_before_the_choice(real: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    with real.client("fair") as client:
        with client.stream("POST", "/v1/comparisons", json=body) as response:
            chunk, *_ = events(response)
        path = f"/v1/replies/{chunk['id']}"
        assert client.get(path).json()["policy_version"] is None
        client.put(f"/v1/comparisons/{chunk['comparison_id']}/choice", json={"choice": "tie"}).raise_for_status()
        assert client.get(path).json()["policy_version"]


def test_what_i_may_know_of_myself(real: Running) -> None:
    with real.client("curious") as client:
        asked = ask(client)
        fresh = client.get("/v1/me").json()
        assert (fresh["object"], fresh["consent"], fresh["taught"]) == ("user", None, [])
        assert isinstance(fresh["default"], bool)
        vote = client.put(f"/v1/replies/{asked['id']}/feedback", json={"thumb": "up"}).json()
        with real.store.write() as session:
            session.add(
                TrainingSample(
                    run_id="run-me", vote_id=vote["vote_id"], user_id=fresh["id"], kind="thumb", split="train"
                )
            )
            session.add(
                Policy(
                    version="v9001-me", number=9001, kind="adapter", state="refused", path="none", digest="none",
                    run_id="run-me",
                )
            )  # fmt: skip
        client.put("/v1/me/consent", json={"consent": False}).raise_for_status()
        known = client.get("/v1/me").json()
        with real.store.write() as session:  # the server is shared: others count its policies
            session.delete(session.get(Policy, "v9001-me"))
        assert known["consent"] is False
        assert known["taught"] == [{"policy": "v9001-me", "state": "refused", "votes": 1}]
    with real.client("another") as other:
        assert other.get("/v1/me").json()["taught"] == []
