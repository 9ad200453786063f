"""LangChain's ChatOpenAI against a running kudos. Runs with LangChain's own environment: `pytest langchain_client.py`.

KUDOS_URL, KUDOS_KEY: a server with the real engine. TOOLS_URL, TOOLS_KEY: one whose model calls `weather`.
"""

import asyncio
import os
import time
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


def chat(prefix: str = "KUDOS", **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{os.environ[f'{prefix}_URL']}/v1",
        api_key=os.environ[f"{prefix}_KEY"],
        model="kudos-tiny",
        max_retries=0,
        **options,
    )


@tool
def weather(city: str) -> str:
    """What the sky does."""
    return "rain"


def test_a_message_is_answered() -> None:
    answer = chat().invoke([SystemMessage("Be kind."), HumanMessage("Hello!")])
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["system_fingerprint"].startswith("v")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_a_stream_adds_up() -> None:
    pieces = list(chat(stream_usage=True).stream("Hello!"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert len(pieces) > 2
    assert whole.text
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def test_it_streams_without_blocking() -> None:
    async def read() -> str:
        return "".join([piece.text async for piece in chat().astream("Hello!")])

    async def two() -> list[str]:
        return await asyncio.gather(read(), read())

    assert all(asyncio.run(two()))


def test_a_stream_that_is_left_is_stopped() -> None:
    client = openai.OpenAI(base_url=f"{os.environ['KUDOS_URL']}/v1", api_key=os.environ["KUDOS_KEY"])
    for _ in range(20):  # even a hot reply may end first
        stream = chat(temperature=2.0, max_tokens=900).stream("Tell me everything")
        reply_id = next(iter(stream)).id or ""
        for _, _piece in zip(range(5), stream, strict=False):
            pass
        stream.close()
        reply_id = reply_id if reply_id.startswith("chatcmpl-") else newest(client)
        kept: Any = {"state": "streaming"}
        while kept["state"] == "streaming":
            time.sleep(0.05)
            kept = client.get(f"/replies/{reply_id}", cast_to=dict[str, Any])
        if kept["state"] != "complete":
            assert kept["state"] == "stopped"
            return
    pytest.fail("no reply was long enough to be stopped")


def newest(client: openai.OpenAI) -> str:
    head = client.get("/conversations?limit=1", cast_to=dict[str, Any])["data"][0]
    return str(client.get(f"/conversations/{head['id']}", cast_to=dict[str, Any])["replies"][-1]["id"])


def test_a_stop_string_ends_a_reply() -> None:
    whole = chat(temperature=0).invoke("Hello!").text
    stop = whole[4:7]
    assert chat(temperature=0).invoke("Hello!", stop=[stop]).text == whole.split(stop)[0]


def test_a_chain_and_a_batch() -> None:
    chain = ChatPromptTemplate.from_messages([("human", "What is {a} plus {b}?")]) | chat() | StrOutputParser()
    assert all(chain.batch([{"a": 1, "b": 2}, {"a": 3, "b": 4}]))


def test_logprobs_come_with_the_answer() -> None:
    answer = chat(logprobs=True, top_logprobs=2).invoke("Hello!")
    assert "".join(bytes(each["bytes"]).decode() for each in answer.response_metadata["logprobs"]["content"])


class Mood(BaseModel):
    happy: bool


def test_structured_output_by_schema() -> None:
    found = chat().with_structured_output(Mood, method="json_schema").invoke("Hello!")
    assert isinstance(found, Mood)


def test_structured_output_by_a_forced_call_is_refused() -> None:
    """To force a call takes a `tool_choice` that this server does not have."""
    with pytest.raises(openai.UnprocessableEntityError, match="tool_choice"):
        chat("TOOLS").with_structured_output(Mood, method="function_calling").invoke("Hello!")


def test_tools_are_called_and_answered() -> None:
    bound = chat("TOOLS").bind_tools([weather])
    question = HumanMessage("Will it rain in Ulm?")
    answer = bound.invoke([question])
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})
    told = weather.invoke(call)
    assert isinstance(told, ToolMessage)
    assert bound.invoke([question, answer, told]).tool_calls  # this model always calls


def test_tools_are_called_in_a_stream() -> None:
    pieces = list(chat("TOOLS").bind_tools([weather]).stream("Will it rain in Ulm?"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Ulm"})]


def test_errors_are_openais() -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        chat().bind(model="gpt-9").invoke("Hello!")
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        chat(temperature=9).invoke("Hello!")
