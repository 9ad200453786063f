"""Long prompts beside running streams, on the real engine: in pieces or not, the reply is drawn from the model."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from feedback.packing import unpack_ids, unpack_logprobs
from feedback.schema import Reply
from tests.server.conftest import Running, ask, wait_for
from trainer.backbone import Backbone
from trainer.logprobs import score_logprobs
from trainer.tiny.build import MODEL_FOLDER

pytestmark = pytest.mark.engine

STREAMS = 4


def long_question(seed: int) -> str:
    """About 700 tokens that are in no cache."""
    rng = random.Random(seed)
    return " ".join(str(rng.randrange(10, 100)) for _ in range(230)) + " What is the capital of Japan?"


@contextmanager
def readers(running: Running) -> Iterator[None]:
    """Streams that go on as long as the block does."""
    ended = Event()

    def read(number: int) -> None:
        with running.client(f"reader-{number}") as client:
            while not ended.is_set():
                ask(client, "Tell me everything", temperature=2.0, max_tokens=200)

    with ThreadPoolExecutor(STREAMS) as pool:
        reading = [pool.submit(read, number) for number in range(STREAMS)]
        try:
            wait_for(lambda: running.metric("kudos_chat_streams_active") >= STREAMS - 1, 60, "the readers")
            yield
        finally:
            ended.set()
            for each in reading:
                each.result()


def gap_nats(reply: Reply) -> float:
    """Mean distance of the logged logprobs from the trainer's own, which are of the whole sequence at once."""
    prompt, tokens = unpack_ids(reply.prompt_token_ids), unpack_ids(reply.token_ids)
    ours = score_logprobs(Backbone.load(MODEL_FOLDER), [prompt], [tokens], 1.0, {})[0, : len(tokens)]
    logged = unpack_logprobs(reply.logprobs)
    return sum(abs(a - b) for a, b in zip(ours.tolist(), logged, strict=True)) / len(tokens)


@pytest.mark.parametrize("fields", [{}, {"seed": 7}], ids=["in pieces", "whole, for its seed"])
def test_a_reply_to_a_long_prompt_beside_streams_is_the_models(real: Running, fields: dict[str, Any]) -> None:
    with readers(real), real.client("long") as client:
        answers = [ask(client, long_question(10 * len(fields) + n), temperature=1.0, **fields) for n in range(3)]
    for answer in answers:
        assert answer["usage"]["prompt_tokens"] > 600
        with real.store.read() as session:
            reply = session.get_one(Reply, answer["id"])
        assert gap_nats(reply) < 0.05
    assert real.metric("kudos_engine_restarts_total") == 0
