"""Logprobs as OpenAI's client reads them, on the real engine."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from feedback.packing import unpack_ids, unpack_logprobs
from feedback.schema import Reply
from tests.server.conftest import Running, ask

pytestmark = pytest.mark.engine


@pytest.fixture
def client(real: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key=real.operator_key) as client:
        yield client


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "kudos-tiny", "messages": [{"role": "user", "content": text}], "logprobs": True, **fields}


def spelled(content: Any) -> str:
    return bytes(byte for entry in content for byte in entry.bytes).decode()


@pytest.mark.parametrize("text", ["Hello!", "你好，请问几点开门？"])
def test_the_tokens_spell_the_reply_and_their_logprobs_are_those_of_the_log(
    real: Running, client: openai.OpenAI, text: str
) -> None:
    completion = client.chat.completions.create(**asked(text, temperature=0, top_logprobs=3))
    choice = completion.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content
    assert spelled(content) == choice.message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].bytes == entry.bytes, "what is sampled at temperature 0 is the most likely"
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert entry.top_logprobs[1].logprob <= entry.logprob <= 0
    with real.store.read() as session:
        reply = session.get(Reply, completion.id)
    assert reply is not None
    stored = unpack_logprobs(reply.logprobs)
    assert [entry.logprob for entry in content] == pytest.approx(stored[: len(content)], abs=1e-3)
    assert len(stored) == len(unpack_ids(reply.token_ids)) == len(content) + 1, "the end token is in the log alone"
    assert set(reply.sampling) == {
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "presence_penalty",
        "frequency_penalty",
    }


def test_streamed_chunks_carry_them(client: openai.OpenAI) -> None:
    text, content = "", []
    for chunk in client.chat.completions.create(**asked("你好！", temperature=0, top_logprobs=1, stream=True)):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            content += chunk.choices[0].logprobs.content or []
    assert spelled(content) == text != ""
    assert all(len(entry.top_logprobs) == 1 for entry in content)


def test_without_top_logprobs_the_sampled_tokens_alone_are_told(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asked("Hello!")).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    assert all(entry.top_logprobs == [] for entry in choice.logprobs.content)


def test_unasked_there_are_none(real: Running) -> None:
    with real.client("plain") as client:
        assert ask(client)["choices"][0]["logprobs"] is None


def test_what_top_p_rules_out_has_a_number(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asked("Hello!", temperature=1, top_p=0.001, top_logprobs=20)).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    first = choice.logprobs.content[0].top_logprobs
    assert len(first) == 20
    assert first[0].logprob == pytest.approx(0, abs=1e-3)
    assert {other.logprob for other in first[1:]} == {-9999.0}


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}])
def test_bounds_are_told_by_name(real: Running, fields: dict[str, Any]) -> None:
    with real.client() as client:
        body = {"messages": [{"role": "user", "content": "x"}], **fields}
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "top_logprobs"


def test_a_comparison_has_none(real: Running) -> None:
    with real.client() as client:
        body = {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
        answer = client.post("/v1/comparisons", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"
