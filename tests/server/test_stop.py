"""A reader that stops or goes away ends its generation in the engine, and what was shown is the reply."""

import time
from collections.abc import Callable

import httpx
import pytest

from feedback.packing import unpack_ids, unpack_logprobs
from feedback.schema import Reply, ReplyState
from server.prompts import Prompts
from server.settings import Settings
from tests.server.conftest import Running, events, wait_for

pytestmark = pytest.mark.engine

# So hot that the model seldom finds its end: a reply of hundreds of tokens.
LONG = {"messages": [{"role": "user", "content": "Tell me everything"}], "temperature": 2.0, "max_tokens": 400}


def aborted(real: Running) -> float:
    return real.metric("vllm:request_success_total", finished_reason="abort")


def ended(real: Running, reply_id: str) -> Callable[[], Reply | None]:
    def look() -> Reply | None:
        with real.store.read() as session:
            reply = session.get(Reply, reply_id)
        return reply if reply is not None and reply.state != ReplyState.STREAMING else None

    return look


def read_some(real: Running, user: str, chunks: int, leave: Callable[[httpx.Response], None]) -> tuple[str, str]:
    """The reply's id and the text that was read of it."""
    for _ in range(10):  # a hot reply may still be short: then there was nothing to stop
        text, reply_id, finished = "", "", False
        with (
            real.client(user) as client,
            client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as r,
        ):
            for at, event in enumerate(events(r)):
                if event == "[DONE]":
                    finished = True
                    break
                reply_id = event["id"]
                text += event["choices"][0]["delta"].get("content") or ""
                if at >= chunks:
                    leave(r)
                    break
        if not finished:
            return reply_id, text
    raise AssertionError("ten hot replies in a row were short")


def test_a_stopped_stream_ends_in_the_engine_and_keeps_its_text(real: Running) -> None:
    before = aborted(real)
    reply_id, text = read_some(real, "stopper", 20, lambda response: response.close())
    reply = wait_for(ended(real, reply_id), 30, "the stopped reply to end")
    assert reply.state == ReplyState.STOPPED
    assert reply.text.startswith(text)
    assert len(text) > 0
    ids = unpack_ids(reply.token_ids)
    assert len(ids) == len(unpack_logprobs(reply.logprobs)) < LONG["max_tokens"]  # type: ignore[operator]
    assert Prompts(Settings().model_folder()).decode(ids) == reply.text
    wait_for(lambda: aborted(real) == before + 1, 30, "the engine to count an abort")
    wait_for(lambda: real.metric("vllm:num_requests_running") == 0, 30, "the engine to be idle")
    assert real.metric("kudos_chat_streams_active") == 0
    with real.client("stopper") as client:
        vote = client.put(f"/v1/replies/{reply_id}/feedback", json={"thumb": "down", "reasons": ["too long"]})
        assert vote.status_code == 200, vote.text


def test_a_torn_connection_is_a_stop(real: Running) -> None:
    def tear(response: httpx.Response) -> None:
        response.extensions["network_stream"].get_extra_info("socket").close()

    reply_id, text = read_some(real, "torn", 10, tear)
    reply = wait_for(ended(real, reply_id), 30, "the torn reply to end")
    assert reply.state == ReplyState.STOPPED
    assert reply.text.startswith(text)


def test_an_answer_that_nobody_waits_for_is_aborted(real: Running) -> None:
    """Not streamed: nothing was shown, so nothing is kept, and nothing can be voted on."""
    before = aborted(real)
    with real.client("impatient") as client:
        for _ in range(20):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=LONG, timeout=httpx.Timeout(5.0, read=0.05))
            time.sleep(0.05)
            if aborted(real) > before:
                break
    wait_for(lambda: aborted(real) > before, 30, "the engine to count an abort")
    wait_for(lambda: real.metric("vllm:num_requests_running") == 0, 30, "the engine to be idle")
