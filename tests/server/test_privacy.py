"""DELETE /v1/me: who asks is erased, a browser starts anew, and nothing that was under way comes back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from feedback.privacy import erase
from feedback.schema import Comparison, Conversation, Policy, Reply, TrainingRun, TrainingSample, User, Vote
from server.identity import create_key
from tests.server.conftest import ForkedServer, Running, ask, events, wait_for

Make = Callable[..., ForkedServer]
WORD = "kumquat"
QUESTION = {"messages": [{"role": "user", "content": f"a {WORD}, please"}]}


def left_of(running: Running, user_id: str) -> list[str]:
    with running.store.read() as session:
        tables: list[Any] = [User, Conversation, Reply, Comparison, Vote, TrainingSample]
        return [
            each.__tablename__
            for each in tables
            if session.exec(select(each).where((each.id if each is User else each.user_id) == user_id)).first()
        ]


def files_with(home: Path, word: str) -> list[str]:
    return [path.name for path in home.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


def learn(running: Running, user_id: str) -> None:
    """As if a policy had been trained on this user's votes."""
    with running.store.write() as session:
        vote = session.exec(select(Vote).where(Vote.user_id == user_id)).first()
        assert vote is not None
        session.add(TrainingRun(id="run-1", state="succeeded"))
        session.add(TrainingSample(run_id="run-1", vote_id=vote.id or 0, user_id=user_id, kind="thumb", split="train"))
        session.add(Policy(version="v9-12345678", number=9, kind="adapter", path="x", digest="x", run_id="run-1"))


def test_who_asks_is_erased_and_nobody_else(forked: Make) -> None:
    running = forked().start()
    with running.client("ada") as ada, running.client("bob") as bob:
        assert ada.delete("/v1/me").status_code == 404, "nothing is known of somebody who never came"
        reply, other = ask(ada, f"a {WORD}, please"), ask(bob)
        ada.put(f"/v1/replies/{reply['id']}/feedback", json={"thumb": "down", "comment": f"no {WORD}"})
        assert ada.post("/v1/comparisons", json=QUESTION).status_code == 200
        user_id = ada.get("/v1/me/export").json()["user_id"]
        learn(running, user_id)
        assert len(left_of(running, user_id)) == 6
        assert files_with(running.home, WORD)

        answer = ada.delete("/v1/me")
        assert answer.status_code == 200
        assert answer.json() == {
            "object": "erasure",
            "user": user_id,
            "erased": {"conversations": 2, "replies": 3, "votes": 1},
            "policies": ["v9-12345678"],
        }
        assert "set-cookie" not in answer.headers
        assert left_of(running, user_id) == []
        assert files_with(running.home, WORD) == []

        again = ada.delete("/v1/me").json()
        assert again["erased"] == {"conversations": 0, "replies": 0, "votes": 0}
        assert again["policies"] == ["v9-12345678"]
        exported = ada.get("/v1/me/export").json()
        assert (exported["conversations"], exported["votes"]) == ([], [])
        for path, body in (("chat/completions", QUESTION), ("comparisons", QUESTION)):
            for stream in (False, True):
                refused = ada.post(f"/v1/{path}", json=body | {"stream": stream})
                assert refused.status_code == 410
                assert refused.json()["error"]["code"] == "user_erased"
        assert ada.put("/v1/me/consent", json={"consent": True}).status_code == 410
        late = ada.put(f"/v1/replies/{reply['id']}/feedback", json={"comment": WORD})
        assert late.status_code == 404
        assert left_of(running, user_id) == []
        assert files_with(running.home, WORD) == []
        assert bob.get(f"/v1/conversations/{other['conversation_id']}").status_code == 200
        assert bob.put(f"/v1/replies/{other['id']}/feedback", json={"thumb": "up"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/comparisons"])
@pytest.mark.slow
def test_a_reply_that_is_being_written_leaves_nothing(forked: Make, path: str) -> None:
    server = forked(FAKE_TOKEN_SECONDS="0.5")
    running = server.start()
    with running.client("ada") as ada, running.client("ada") as second:
        second.get("/v1/models")
        with ada.stream("POST", path, json=QUESTION | {"stream": True}) as response:
            reader = events(response)
            next(reader)
            user_id = second.get("/v1/me/export").json()["user_id"]
            assert second.delete("/v1/me").status_code == 200
            last = list(reader)[-1]
        assert last["error"]["code"] == "not_found", "no [DONE] for what is not kept"
        assert left_of(running, user_id) == []
        assert files_with(running.home, WORD) == []
        assert second.get("/health/live").status_code == 200


def test_a_reader_that_leaves_after_the_erasure_breaks_nothing(forked: Make) -> None:
    server = forked(FAKE_TOKEN_SECONDS="0.5")
    running = server.start()
    with running.client("ada") as ada, running.client("ada") as second:
        second.get("/v1/models")
        with ada.stream("POST", "/v1/chat/completions", json=QUESTION | {"stream": True}) as response:
            next(events(response))
            user_id = second.get("/v1/me/export").json()["user_id"]
            assert second.delete("/v1/me").status_code == 200
        wait_for(lambda: running.metric("kudos_chat_streams_active") == 0, 20, "the stream to end")
    assert left_of(running, user_id) == []
    assert "Traceback" not in server.log()


@contextmanager
def browser(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        assert "set-cookie" in client.get("/").headers
        yield client


def test_a_browser_is_a_new_user_after_it_was_erased(forked: Make) -> None:
    running = forked().start()
    with browser(running) as page:
        ask(page)
        before = page.get("/v1/me/export").json()["user_id"]
        answer = page.delete("/v1/me")
        assert answer.json()["user"] == before
        assert "kudos_user=; Path=/; Max-Age=0" in answer.headers["set-cookie"]
        assert not page.cookies
        assert ask(page)["choices"][0]["finish_reason"] == "stop"
        assert page.get("/v1/me/export").json()["user_id"] != before


def test_a_browser_whose_user_an_operator_erased_is_refused_once(forked: Make) -> None:
    running = forked().start()
    with browser(running) as page:
        ask(page)
        before = page.get("/v1/me/export").json()["user_id"]
        erase(running.store, running.home / "runs", before)
        refused = page.post("/v1/chat/completions", json=QUESTION)
        assert refused.status_code == 410
        assert "Max-Age=0" in refused.headers["set-cookie"]
        assert ask(page)["choices"][0]["finish_reason"] == "stop"
        assert page.get("/v1/me/export").json()["user_id"] != before


def test_a_page_of_another_site_erases_nobody(forked: Make) -> None:
    running = forked().start()
    with browser(running) as page:
        ask(page)
        refused = page.delete("/v1/me", headers={"sec-fetch-site": "cross-site"})
        assert refused.status_code == 403
        assert page.get("/v1/me/export").json()["conversations"]


def test_a_key_of_ones_own_ends_with_its_user(forked: Make) -> None:
    running = forked().start()
    with running.store.write() as session:
        _, secret = create_key(session, label=f"{WORD}'s notebook", scopes=["chat"], user_id="ada")
    with running.client(key=secret) as client:
        ask(client)
        assert client.delete("/v1/me").json()["user"] == "ada"
        wait_for(lambda: client.get("/v1/models").status_code == 401, 10, "the key to be refused")
    assert files_with(running.home, WORD) == []
    with running.client() as operator:  # its key speaks for others too, and stays
        assert operator.get("/v1/policies").status_code == 200
