"""Several choices of one request: each a reply of its own, and all of them one turn of one conversation."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from feedback.packing import unpack_ids
from feedback.schema import Reply, ReplyState
from tests.server.conftest import ForkedServer, Running, ask, events, wait_for
from tests.server.test_stop import LONG, ended, idle

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def client(real: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key=real.operator_key) as client:
        yield client


def rows(running: Running, reply_ids: list[str]) -> list[Reply]:
    with running.store.read() as session:
        found = [session.get(Reply, reply_id) for reply_id in reply_ids]
    assert all(found)
    return [reply for reply in found if reply is not None]


@pytest.mark.engine
def test_each_choice_is_a_reply_that_can_be_voted_on(real: Running, client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="kudos-tiny", messages=HELLO, n=3, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    ids = [choice.reply_id for choice in completion.choices]  # type: ignore[attr-defined]
    assert len(set(ids)) == 3
    assert completion.id == ids[0]
    replies = rows(real, ids)
    assert [reply.text for reply in replies] == [choice.message.content for choice in completion.choices]
    assert {reply.state for reply in replies} == {ReplyState.COMPLETE}
    assert len({reply.conversation_id for reply in replies}) == 1
    assert {reply.policy_version for reply in replies} == {completion.system_fingerprint}
    assert [reply.sampling["seed"] for reply in replies] == [7, 7 ^ 1, 7 ^ 2]
    assert completion.usage is not None
    assert completion.usage.completion_tokens == sum(len(unpack_ids(reply.token_ids)) for reply in replies)
    assert completion.usage.prompt_tokens == len(unpack_ids(replies[0].prompt_token_ids))
    with real.client() as voter:
        for reply_id in ids:
            vote = voter.put(f"/v1/replies/{reply_id}/feedback", json={"thumb": "up"})
            assert vote.status_code == 200, vote.text


@pytest.mark.engine
def test_they_are_one_turn_and_the_conversation_goes_on_from_the_first(real: Running) -> None:
    with real.client("chooser") as client:
        first = ask(client, "Hello!", n=3)
        ids = [choice["reply_id"] for choice in first["choices"]]
        replies = rows(real, ids)
        assert [reply.regenerate_of for reply in replies] == [ids[2], ids[2], None]
        assert {reply.parent_id for reply in replies} == {None}
        path = f"/v1/conversations/{first['conversation_id']}"
        assert [reply["id"] for reply in client.get(path).json()["replies"]] == ids[::-1]
        second = ask(client, "And what is 1 plus 1?", conversation_id=first["conversation_id"])
        assert rows(real, [second["id"]])[0].parent_id == first["id"] == ids[0]
        again = ask(client, "And what is 1 plus 1?", regenerate_of=second["id"], n=2)
        redone = rows(real, [choice["reply_id"] for choice in again["choices"]])
        assert {(reply.regenerate_of, reply.parent_id) for reply in redone} == {(second["id"], first["id"])}


@pytest.mark.engine
def test_they_stream_side_by_side_and_are_durable_when_done_is_read(real: Running) -> None:
    body = {"messages": HELLO, "n": 3, "stream": True, "stream_options": {"include_usage": True}}
    texts: defaultdict[int, str] = defaultdict(str)
    ids: dict[int, str] = {}
    roles, ends, usages = [], [], []
    with real.client("streamer") as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        for event in events(response):
            if event == "[DONE]":
                replies = rows(real, [ids[index] for index in range(3)])
                assert {reply.state for reply in replies} == {ReplyState.COMPLETE}
                assert [reply.text for reply in replies] == [texts[index] for index in range(3)]
                break
            if event["choices"] == []:
                usages.append(event["usage"])
                continue
            (choice,) = event["choices"]
            index = choice["index"]
            assert ids.setdefault(index, choice["reply_id"]) == choice["reply_id"]
            texts[index] += choice["delta"].get("content") or ""
            roles += [index] if "role" in choice["delta"] else []
            ends += [index] if choice["finish_reason"] else []
        else:
            pytest.fail("the stream ended without [DONE]")
    assert sorted(roles) == sorted(ends) == [0, 1, 2]
    (usage,) = usages
    assert usage["completion_tokens"] == sum(len(unpack_ids(reply.token_ids)) for reply in replies)
    assert event == "[DONE]"


@pytest.mark.engine
def test_a_reader_that_leaves_ends_them_all_in_the_engine(real: Running) -> None:
    """Even hot replies may all end before the reader leaves: then once more."""
    for _ in range(20):
        texts: defaultdict[str, str] = defaultdict(str)
        body = LONG | {"stream": True, "n": 3}
        with real.client("leaver") as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            for at, event in enumerate(events(response)):
                if event == "[DONE]":
                    break
                (choice,) = event["choices"]
                texts[choice["reply_id"]] += choice["delta"].get("content") or ""
                if at >= 30 and len(texts) == 3:
                    response.close()
                    break
        replies: list[Reply] = [wait_for(ended(real, reply_id), 60, "the reply to end") for reply_id in texts]
        assert {reply.state for reply in replies} <= {ReplyState.STOPPED, ReplyState.COMPLETE}
        assert all(reply.text.startswith(texts[reply.id]) for reply in replies)
        if any(reply.state == ReplyState.STOPPED for reply in replies):
            break
    else:
        pytest.fail("no reply was left before its end")
    wait_for(lambda: idle(real), 60, "the engine to be idle")
    assert real.metric("kudos_chat_streams_active") == 0


def test_a_dead_engine_fails_them_all(forked: Callable[..., ForkedServer], tmp_path: Path) -> None:
    switch = tmp_path / "dead"
    running = forked(FAKE_ENGINE_DEAD=str(switch), FAKE_TOKEN_SECONDS="0.2").start()
    body = {"messages": HELLO, "n": 2, "stream": True}
    ids: set[str] = set()
    with running.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        for event in events(response):
            if "error" in event:
                break
            ids.add(event["choices"][0]["reply_id"])
            if len(ids) == 2:
                switch.touch()
        assert event["error"]["code"] == "engine_dead"
    for reply_id in ids:
        assert wait_for(ended(running, reply_id), 10, "the reply to end").state == ReplyState.FAILED


def test_they_count_as_streams_of_their_user(forked: Callable[..., ForkedServer]) -> None:
    running = forked(KUDOS_MAX_STREAMS_PER_USER="2").start()
    with running.client("greedy") as client:
        assert client.post("/v1/chat/completions", json={"messages": HELLO, "n": 3}).status_code == 429
        assert len(ask(client, n=2)["choices"]) == 2


def test_a_comparison_has_two_replies_and_no_choices(forked: Callable[..., ForkedServer]) -> None:
    running = forked(KUDOS_MAX_CHOICES="3").start()
    with running.client() as client:
        answer = client.post("/v1/comparisons", json={"messages": HELLO, "n": 2})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, "n": 4})
        assert answer.status_code == 400
        assert "at most 3" in answer.json()["error"]["message"]
