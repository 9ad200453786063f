"""Chunks spelled by hand are the JSON that a serialiser would write, whatever the text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat_request import ChatRequest, ResponseFormat
from server.errors import ApiError
from server.wire import ChunkWriter, parse


def data(written: bytes) -> Any:
    assert written.startswith(b"data: ")
    assert written.endswith(b"\n\n")
    assert written.count(b"\n") == 2, "a line break in a text would end the event"
    return json.loads(written.removeprefix(b"data: "))


@given(text=st.text(), extra=st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_every_text_survives_its_chunk(text: str, extra: dict[str, str]) -> None:
    writer = ChunkWriter("chatcmpl-1", "kudos-tiny", {f"x_{name}": value for name, value in extra.items()})
    chunk = data(writer.text(text))
    assert chunk["id"] == "chatcmpl-1"
    assert chunk["choices"] == [
        {
            "index": 0,
            "reply_id": "chatcmpl-1",
            "delta": {"content": text},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert {name: chunk[f"x_{name}"] for name in extra} == extra
    assert chunk["object"] == "chat.completion.chunk"
    assert data(writer.role())["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert data(writer.finish("length"))["choices"][0]["finish_reason"] == "length"
    entry = {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}
    choice = data(writer.text(text, [entry]))["choices"][0]
    assert choice["delta"] == {"content": text}
    assert choice["logprobs"] == {"content": [entry], "refusal": None}
    assert data(writer.usage({"total_tokens": 3}))["usage"] == {"total_tokens": 3}


def test_choices_share_the_completions_id_and_have_their_own() -> None:
    writer = ChunkWriter("chatcmpl-2", "kudos-tiny", {}, index=1, completion_id="chatcmpl-1")
    chunk = data(writer.text("x"))
    assert chunk["id"] == "chatcmpl-1"
    assert (chunk["choices"][0]["index"], chunk["choices"][0]["reply_id"]) == (1, "chatcmpl-2")


def test_a_whole_number_may_be_written_as_a_float() -> None:
    request = parse(ChatRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 64.0, "seed": 2.0**70})
    assert (request.max_tokens, request.seed) == (64, 2**70)


def test_text_parts_and_the_developer_role_are_understood() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
    }
    assert [message.plain() for message in parse(ChatRequest, body).messages] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "ab"},
    ]


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_json_is_a_request_or_a_422(body: Any) -> None:
    try:
        parse(ChatRequest, body)
    except ApiError as error:
        if error.status != 422:
            raise


@pytest.mark.parametrize(
    "schema",
    [{"pattern": "a"}, {"items": [{"patternProperties": {"^a": {}}}]}, {"properties": {"x": {"pattern": "a"}}}],
)
def test_patterns_are_refused_wherever_they_stand(schema: Any) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(ApiError, match="patterns are not taken"):
        parse(ResponseFormat, asked).constraint()


def test_a_property_may_be_called_pattern() -> None:
    schema = {"properties": {"pattern": {"type": "string"}}, "enum": ["pattern"]}
    assert parse(ResponseFormat, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}).constraint()


def test_images_are_refused_by_name() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages.0.content")
