"""A reader that stops or goes away ends its generation in the engine, and what was shown is the reply."""

import contextlib
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from feedback.packing import unpack_ids, unpack_logprobs
from feedback.replies import storable
from feedback.schema import Reply, ReplyState
from server.prompts import Prompts
from server.settings import Settings
from tests.server.conftest import Running, ask, events, wait_for

pytestmark = pytest.mark.engine

# So hot that the model seldom finds its end: a reply of hundreds of tokens.
LONG = {"messages": [{"role": "user", "content": "Tell me everything"}], "temperature": 2.0, "max_tokens": 900}


def aborted(real: Running) -> float:
    """vLLM counts no request that its caller aborts; its running requests and generated tokens show the end."""
    return real.metric("kudos_chat_stream_aborts_total", reason="disconnected")


def idle(real: Running) -> bool:
    return real.metric("vllm:num_requests_running") == 0 == real.metric("vllm:num_requests_waiting")


def ended(real: Running, reply_id: str) -> Callable[[], Reply | None]:
    def look() -> Reply | None:
        with real.store.read() as session:
            reply = session.get(Reply, reply_id)
        return reply if reply is not None and reply.state != ReplyState.STREAMING else None

    return look


def leave_early(real: Running, user: str, chunks: int, leave: Callable[[httpx.Response], None]) -> tuple[Reply, str]:
    """The reply that was left, and the text that was read of it. Even a hot reply may end first: then once more."""
    for _ in range(20):
        text, reply_id = "", ""
        with (
            real.client(user) as client,
            client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as r,
        ):
            for at, event in enumerate(events(r)):
                if event == "[DONE]":
                    break
                reply_id = event["id"]
                text += event["choices"][0]["delta"].get("content") or ""
                if at >= chunks:
                    leave(r)
                    break
        reply = wait_for(ended(real, reply_id), 60, "the reply to end")
        if reply.state != ReplyState.COMPLETE:
            return reply, text
    raise AssertionError("no reply was left before its end")


def test_a_stopped_stream_ends_in_the_engine_and_keeps_its_text(real: Running) -> None:
    before = aborted(real)
    reply, text = leave_early(real, "stopper", 20, lambda response: response.close())
    assert reply.state == ReplyState.STOPPED
    assert reply.text.startswith(storable(text))
    assert len(text) > 0
    ids = unpack_ids(reply.token_ids)
    assert len(ids) == len(unpack_logprobs(reply.logprobs)) < LONG["max_tokens"]  # type: ignore[operator]
    assert storable(Prompts(Settings().model_folder()).decode(ids)) == reply.text
    assert aborted(real) == before + 1
    wait_for(lambda: idle(real), 60, "the engine to be idle")
    tokens = real.metric("vllm:generation_tokens_total")
    time.sleep(1)
    assert real.metric("vllm:generation_tokens_total") == tokens, "nothing is generated for nobody"
    assert real.metric("kudos_chat_streams_active") == 0
    with real.client("stopper") as client:
        vote = client.put(f"/v1/replies/{reply.id}/feedback", json={"thumb": "down", "reasons": ["too long"]})
        assert vote.status_code == 200, vote.text


def test_the_engine_is_seen_at_work_and_at_rest(real: Running) -> None:
    """So that an idle engine in the tests around this one means something."""
    stop = threading.Event()

    def chat() -> None:
        with real.client("worker") as client:
            while not stop.is_set():
                ask(client, "Tell me everything", temperature=2.0, max_tokens=900)

    thread = threading.Thread(target=chat, daemon=True)
    thread.start()
    wait_for(lambda: real.metric("vllm:num_requests_running") >= 1, 60, "the engine to be at work")
    stop.set()
    thread.join(60)
    wait_for(lambda: idle(real), 60, "the engine to be idle")


def test_a_torn_connection_is_a_stop(real: Running) -> None:
    def tear(response: httpx.Response) -> None:
        response.extensions["network_stream"].get_extra_info("socket").close()

    reply, text = leave_early(real, "torn", 10, tear)
    assert reply.state == ReplyState.STOPPED
    assert reply.text.startswith(storable(text))


def test_an_answer_that_nobody_waits_for_is_aborted(real: Running) -> None:
    """Not streamed: nothing was shown, so nothing is kept, and nothing can be voted on."""
    before = aborted(real)
    with real.client("impatient") as client:
        for _ in range(20):
            with contextlib.suppress(httpx.ReadTimeout):  # a short answer may come in time: then once more
                client.post("/v1/chat/completions", json=LONG, timeout=httpx.Timeout(5.0, read=0.05))
            time.sleep(0.05)
            if aborted(real) > before:
                break
    wait_for(lambda: aborted(real) > before, 30, "the abort to be counted")
    wait_for(lambda: idle(real), 30, "the engine to be idle")
