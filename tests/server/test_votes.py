"""Votes over HTTP: what is accepted, what is refused, and what a comparison hides until its choice."""

from collections import Counter
from typing import Any

import pytest
from sqlmodel import select

from feedback.schema import Comparison, Reply, Vote
from tests.server.conftest import Running, ask, events

pytestmark = pytest.mark.engine


def test_a_vote_is_cast_changed_repeated_and_withdrawn(real: Running) -> None:
    with real.client("voter") as client:
        path = f"/v1/replies/{ask(client)['id']}/feedback"
        put = lambda body: client.put(path, json=body).json()  # noqa: E731
        assert put({"thumb": "up"})["outcome"] == "accepted"
        assert put({"thumb": "up"})["outcome"] == "duplicate"
        assert put({"thumb": "down", "reasons": ["wrong"], "rating": 0.25})["outcome"] == "changed"
        assert client.delete(path).json()["outcome"] == "withdrawn"
        assert put({"correction": "It is seven.", "harmful": True})["outcome"] == "accepted"


def test_bad_ballots_are_refused(real: Running) -> None:
    with real.client("spoiler") as client:
        reply = ask(client)
        for body in (
            {},
            {"thumb": "sideways"},
            {"rating": 1.5},
            {"rating": "high"},
            {"reasons": "one text"},
            {"choice": "left"},
            {"thumbs": "up"},
            {"thumb": "up", "harmful": "yes"},
        ):
            answer = client.put(f"/v1/replies/{reply['id']}/feedback", json=body)
            assert answer.status_code == 422, (body, answer.text)
        assert client.put("/v1/replies/chatcmpl-unknown/feedback", json={"thumb": "up"}).status_code == 404
        assert client.delete(f"/v1/replies/{reply['id']}/feedback").status_code == 404


def test_an_idempotency_key_counts_once(real: Running) -> None:
    with real.client("careful") as client:
        path = f"/v1/replies/{ask(client)['id']}/feedback"
        header = {"idempotency-key": "once"}
        first = client.put(path, json={"thumb": "up"}, headers=header).json()
        again = client.put(path, json={"thumb": "up"}, headers=header).json()
        assert (first["vote_id"], again["outcome"]) == (again["vote_id"], "duplicate")
        assert client.put(path, json={"thumb": "down"}, headers=header).status_code == 422


def test_a_reply_that_is_being_written_cannot_be_voted_on(real: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 2.0, "max_tokens": 400, "stream": True}
    with real.client("early") as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        reply_id = next(events(response))["id"]
        with real.client("early") as second:
            answer = second.put(f"/v1/replies/{reply_id}/feedback", json={"thumb": "up"})
        with real.store.read() as session:
            reply = session.get(Reply, reply_id)
        assert reply is not None
        if reply.state == "streaming":
            assert answer.status_code == 409


def test_two_replies_stream_side_by_side_and_hide_their_policies(real: Running) -> None:
    with real.client("judge") as client:
        body = {"messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        texts: Counter[str] = Counter()
        text = {"left": "", "right": ""}
        finished, ids = set(), {}
        with client.stream("POST", "/v1/comparisons", json=body) as response:
            received: list[Any] = list(events(response))
        assert received.pop() == "[DONE]"
        for chunk in received:
            assert "system_fingerprint" not in chunk
            side = chunk["side"]
            texts[side] += 1
            ids[side] = chunk["id"]
            text[side] += chunk["choices"][0]["delta"].get("content", "")
            if chunk["choices"][0]["finish_reason"]:
                finished.add(side)
        comparison_id, conversation_id = received[0]["comparison_id"], received[0]["conversation_id"]
        assert finished == {"left", "right"}
        stored = client.get(f"/v1/conversations/{conversation_id}").json()
        assert {reply["side"]: reply["text"] for reply in stored["replies"]} == text
        assert {reply["policy_version"] for reply in stored["replies"]} == {None}
        assert stored["comparisons"][0]["revealed"] is None
        path = f"/v1/comparisons/{comparison_id}/choice"
        for bad in ({}, {"choice": "neither"}, {"choice": "left", "thumb": "up"}):
            assert client.put(path, json=bad).status_code == 422
        with real.client("not the judge".replace(" ", "-")) as other:
            assert other.put(path, json={"choice": "left"}).status_code == 404
        answer = client.put(path, json={"choice": "right", "reasons": ["warmer"]}).json()
        assert answer["outcome"] == "accepted"
        assert set(answer["revealed"]) == {"left", "right"}
        stored = client.get(f"/v1/conversations/{conversation_id}").json()
        assert stored["comparisons"][0]["revealed"] == answer["revealed"]
        assert stored["comparisons"][0]["vote"]["choice"] == "right"
        follow_up = ask(client, "Thank you", conversation_id=conversation_id)
        assert client.delete(path).json()["outcome"] == "withdrawn"
    with real.store.read() as session:
        row = session.get(Comparison, comparison_id)
        assert row is not None
        assert row.propensity == 1.0  # one policy, twice
        continued = session.get(Reply, follow_up["id"])
        assert continued is not None
        assert continued.messages[1]["content"] == text["right"], "the preferred side is what was said"
        votes = session.exec(select(Vote).where(Vote.target_id == comparison_id)).all()
        assert [vote.withdrawn for vote in sorted(votes, key=lambda vote: vote.revision)] == [False, True]


def test_a_comparison_without_streaming(real: Running) -> None:
    with real.client("judge2") as client:
        answer = client.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "Hello!"}], "seed": 5})
        body = answer.json()
        assert answer.status_code == 200
        for side in ("left", "right"):
            assert body[side]["choices"][0]["message"]["content"]
            assert "system_fingerprint" not in body[side]
        left, right = (body[side]["choices"][0]["message"]["content"] for side in ("left", "right"))
        assert body["left"]["id"] != body["right"]["id"]
        assert left or right
        assert client.put(f"/v1/replies/{body['left']['id']}/feedback", json={"thumb": "up"}).status_code == 200
