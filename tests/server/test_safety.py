"""The safety filter over HTTP, around a fake engine that says what it is told to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from typer.testing import CliRunner

from feedback.schema import Comparison, Reply
from server.errors import BadConfiguration
from server.run import serve
from server.safety_cli import app as safety_cli
from server.settings import Settings
from tests.server.conftest import ForkedServer, Running, ask, events
from tests.server.fake_engine import FakeEngine

Make = Callable[..., ForkedServer]

FILE = """
[[rules]]
name = "house"
words = ["attack", "炸弹"]
topics.weapons = ["rifle"]

[[rules]]
name = "watched"
words = ["dawn"]
action = "flag"
"""
SAYS = "At dawn they will attack the castle. 炸弹!"
SHOWN = "At dawn they will "


@pytest.fixture
def filtered(forked: Make, tmp_path: Path) -> Callable[..., Running]:
    def start(says: str = SAYS, file: str = FILE) -> Running:
        path = tmp_path / "safety.toml"
        path.write_text(file)
        return forked(KUDOS_SAFETY_FILE=str(path), FAKE_SAYS=says).start()

    return start


def row(running: Running, reply_id: str) -> Reply:
    with running.store.read() as session:
        reply = session.get(Reply, reply_id)
    assert reply is not None
    return reply


def told(client: Any, path: str, **fields: Any) -> list[Any]:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
    with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, response.read()
        return list(events(response))


def said(chunks: list[Any], **of: Any) -> tuple[str, list[str]]:
    mine = [chunk for chunk in chunks if chunk != "[DONE]" and all(chunk.get(k) == v for k, v in of.items())]
    choices = [choice for chunk in mine for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def test_a_reply_is_cut_before_what_is_forbidden_and_kept_as_it_was_shown(filtered: Callable[..., Running]) -> None:
    running = filtered()
    with running.client("alice") as client:
        chunks = told(client, "/v1/chat/completions", stream_options={"include_usage": True})
        assert chunks[-1] == "[DONE]"
        assert said(chunks) == (SHOWN, ["content_filter"])
        whole = ask(client)
        assert whole["choices"][0]["message"]["content"] == SHOWN
        assert whole["choices"][0]["finish_reason"] == "content_filter"
        for reply_id in (chunks[0]["id"], whole["id"]):
            reply = row(running, reply_id)
            assert (reply.text, reply.state, reply.finish_reason) == (SHOWN, "stopped", "content_filter")
            assert reply.safety_flag == "rules"
            assert reply.safety is not None
            assert [flag["rule"] for flag in reply.safety["flags"]] == ["word dawn", "word attack"]
            vote = client.put(f"/v1/replies/{reply_id}/feedback", json={"thumb": "down", "correction": "They rest."})
            assert vote.status_code == 200
        shown = client.get(f"/v1/replies/{whole['id']}").json()
        assert (shown["text"], shown["finish_reason"]) == (SHOWN, "content_filter")
        assert "attack" not in client.get(f"/v1/conversations/{whole['conversation_id']}").text
        assert "attack" not in client.get("/v1/me/export").text
    flags = {"stage": "output", "track": "stable", "source": "rules"}
    assert running.metric("kudos_chat_safety_flags_total", **flags) == 4  # two checks, two replies
    assert running.metric("kudos_chat_stream_aborts_total", reason="content_filter") == 2
    assert running.metric("kudos_chat_replies_total", state="stopped") == 2


def test_logprobs_of_a_cut_reply_spell_no_more_than_was_shown(filtered: Callable[..., Running]) -> None:
    with filtered().client() as client:
        chunks = told(client, "/v1/chat/completions", logprobs=True)
    entries = [e for c in chunks[:-1] for e in ((c["choices"][0].get("logprobs") or {}).get("content") or [])]
    assert len(entries) == len(SHOWN) // 5  # the engine's tokens have five characters


def test_a_forbidden_question_is_refused_and_kept_nowhere(filtered: Callable[..., Running]) -> None:
    running = filtered(says="Fine.")
    with running.client("bob") as client:
        for path in ("/v1/chat/completions", "/v1/comparisons"):
            for content in ("how do I ATTACK?", [{"type": "text", "text": "a rifle"}], "如何做炸弹"):
                answer = client.post(path, json={"messages": [{"role": "user", "content": content}], "stream": True})
                assert answer.status_code == 400
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == ("content_filter", "messages")
                assert error["type"] == "invalid_request_error"
                assert "attack" not in error["message"], "the list is the operator's"
        # In any message of the user's; the system's words may name what is forbidden.
        long_ago = [{"role": "user", "content": "rifle"}, {"role": "assistant", "content": "no"}]
        asked = {"messages": [*long_ago, {"role": "user", "content": "hello"}]}
        assert client.post("/v1/chat/completions", json=asked).status_code == 400
        system = {"role": "system", "content": "Never say attack."}
        answer = client.post(
            "/v1/chat/completions", json={"messages": [system, {"role": "user", "content": "at dawn"}]}
        )
        assert answer.status_code == 200
    with running.store.read() as session:
        replies = session.exec(select(Reply)).all()
    assert [reply.messages[-1]["content"] for reply in replies] == ["at dawn"]
    assert replies[0].safety_flag is None
    assert replies[0].safety is not None
    assert replies[0].safety["flags"] == []
    assert running.metric("kudos_chat_safety_flags_total", stage="input", source="rules", track="none") == 8


def test_each_choice_and_each_side_is_cut_by_itself(filtered: Callable[..., Running]) -> None:
    running = filtered()
    with running.client("carol") as client:
        body = ask(client, n=3)
        assert [choice["message"]["content"] for choice in body["choices"]] == [SHOWN] * 3
        assert {choice["finish_reason"] for choice in body["choices"]} == {"content_filter"}
        chunks = told(client, "/v1/comparisons")
        for side in ("left", "right"):
            assert said(chunks, side=side) == (SHOWN, ["content_filter"])
        comparison_id = chunks[0]["comparison_id"]
        choice = client.put(f"/v1/comparisons/{comparison_id}/choice", json={"choice": "both_bad"})
        assert choice.status_code == 200
        with running.store.read() as session:
            comparison = session.get(Comparison, comparison_id)
            assert comparison is not None
        assert row(running, comparison.left_reply_id).safety_flag == "rules"
        # With stop strings a token comes before its text.
        answer = client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "stop": "x"},
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


def test_nothing_shown_at_all(filtered: Callable[..., Running]) -> None:
    running = filtered(says="attack now")
    with running.client() as client:
        body = ask(client)
        assert body["choices"][0]["message"]["content"] == ""
        assert body["choices"][0]["finish_reason"] == "content_filter"
        assert body["usage"]["completion_tokens"] == 0
        assert row(running, body["id"]).text == ""
        assert client.put(f"/v1/replies/{body['id']}/feedback", json={"thumb": "up"}).status_code == 409


def test_without_a_filter_nothing_is_kept_of_one(forked: Make) -> None:
    running = forked(FAKE_SAYS=SAYS).start()
    with running.client() as client:
        body = ask(client)
        assert body["choices"][0]["message"]["content"] == SAYS
        reply = row(running, body["id"])
        assert (reply.safety, reply.safety_flag) == (None, None)


async def test_a_mistake_in_the_file_is_told_before_the_engine_starts(tmp_path: Path) -> None:
    path = tmp_path / "safety.toml"
    path.write_text('[[rules]]\nname = "a"\nwords = [""]')
    engine = FakeEngine()
    with pytest.raises(BadConfiguration, match=r"KUDOS_SAFETY_FILE.*blank"):
        await serve(Settings(home=tmp_path, port=0, safety_file=path), engine)
    assert engine.starts == 0


def test_a_text_can_be_tried_without_a_server(tmp_path: Path) -> None:
    path = tmp_path / "safety.toml"
    path.write_text(FILE)
    for text, stage, code, rules in (
        ("attack at dawn", "input", 1, ["word attack", "word dawn"]),
        ("at dawn", "output", 0, ["word dawn"]),
        ("hello", "output", 0, []),
    ):
        result = CliRunner().invoke(safety_cli, ["check", text, "--stage", stage, "--file", str(path)])
        assert result.exit_code == code, result.output
        said = json.loads(result.output)
        assert [flag["rule"] for flag in said["flags"]] == rules
        assert said["passes"] is (code == 0)
    cost = json.loads(CliRunner().invoke(safety_cli, ["cost", "--file", str(path), "--tokens", "500"]).output)
    assert 0 < cost["rules_us_per_token"] < 10_000
    assert CliRunner().invoke(safety_cli, ["check", "x", "--stage", "middle", "--file", str(path)]).exit_code == 2
