"""Replies that are held to a JSON Schema, on the real engine: whatever a small model samples, it is what was asked."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from sqlmodel import select

from feedback.schema import Reply
from tests.server.conftest import Running, ask

pytestmark = pytest.mark.engine

MOOD = {
    "type": "object",
    "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}


@pytest.fixture
def client(real: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key=real.operator_key) as client:
        yield client


def is_mood(text: str | None) -> bool:
    found = json.loads(text or "")
    return set(found) == {"mood", "sure"} and found["mood"] in ("good", "bad") and isinstance(found["sure"], bool)


def hello(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("text", ["Hello!", "What is 2 plus 3?", "你好！"])
def test_a_reply_is_what_the_schema_allows_and_the_log_says_why(
    real: Running, client: openai.OpenAI, text: str
) -> None:
    completion = client.chat.completions.create(model="kudos-tiny", messages=hello(text), response_format=FORMAT)
    choice = completion.choices[0]
    assert choice.finish_reason == "stop"
    assert is_mood(choice.message.content)
    with real.store.read() as session:
        reply = session.get(Reply, completion.id)
    assert reply is not None
    assert reply.text == choice.message.content
    assert reply.sampling["json_schema"] == MOOD


def test_every_choice_of_a_stream_is_held_to_it(client: openai.OpenAI) -> None:
    texts = ["", ""]
    for chunk in client.chat.completions.create(
        model="kudos-tiny", messages=hello("Hello!"), response_format=FORMAT, n=2, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert all(map(is_mood, texts))


def test_free_replies_beside_them_stay_free(real: Running) -> None:
    """They share the engine's batches, and its masks must not slip from one row to another."""

    def held(number: int) -> str:
        with real.client(f"held{number}") as client:
            return str(ask(client, response_format=FORMAT)["choices"][0]["message"]["content"])

    def free(number: int) -> dict[str, Any]:
        with real.client(f"free{number}") as client:
            return ask(client, "Tell me everything", temperature=0, response_format={"type": "text"})

    with ThreadPoolExecutor(8) as pool:
        schemas = [pool.submit(held, number) for number in range(12)]
        texts = [pool.submit(free, number) for number in range(12)]
    assert all(is_mood(future.result()) for future in schemas)
    for future in texts:
        assert not future.result()["choices"][0]["message"]["content"].startswith("{")
    with real.store.read() as session:
        reply = session.get(Reply, texts[0].result()["id"])
    assert reply is not None
    assert "json_schema" not in reply.sampling


def test_json_object_is_an_object_where_it_comes_to_its_end(real: Running) -> None:
    with real.client("objector") as client:
        for _ in range(4):
            choice = ask(client, response_format={"type": "json_object"}, max_tokens=200)["choices"][0]
            assert choice["message"]["content"].startswith("{")
            if choice["finish_reason"] == "stop":  # what a length limit cuts is half an object, as at OpenAI's
                assert isinstance(json.loads(choice["message"]["content"]), dict)


def schema(body: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": body}}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "integer"} if depth == 0 else {"type": "array", "items": nested(depth - 1)}


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"type": "yaml"}, 422, "response_format.type"),
        ({"type": "json_schema"}, 422, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, 422, "response_format.json_schema.schema"),
        (schema({"description": "x" * 20_000}), 422, "response_format.json_schema.schema"),
        (schema({"prefixItems": [{"pattern": "(a{900}|b)"}]}), 422, "response_format.json_schema.schema"),
        (schema({"patternProperties": {"^a": {}}}), 422, "response_format.json_schema.schema"),
        (schema({"type": "integer", "multipleOf": 3}), 400, "response_format"),
        (schema({"$ref": "#/$defs/nowhere"}), 400, "response_format"),
        (schema(nested(80)), 400, "response_format"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_before_there_is_a_reply(
    real: Running, asked: dict[str, Any], status: int, param: str
) -> None:
    with real.client("refused") as client:
        body = {"messages": hello("x"), "response_format": asked}
        for stream in (False, True):
            answer = client.post("/v1/chat/completions", json=body | {"stream": stream})
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    with real.store.read() as session:
        assert not session.exec(select(Reply).where(Reply.user_id == "operator/refused")).all()


def test_a_comparison_is_never_held_to_one(real: Running) -> None:
    with real.client() as client:
        answer = client.post("/v1/comparisons", json={"messages": hello("x"), "response_format": FORMAT})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
