"""What is left of vLLM's logprobs is what vLLM has, and a vLLM that kudos did not start keeps all of it."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists
from vllm.v1.sample import sampler

from server.lean_logprobs import ASKED, no_ranks, numbers_of, take_in

FOUND = LogprobsLists(
    np.array([[5, 5, 9], [7, 8, 7], [3, 1, 2]], dtype=np.int32),
    np.array([[-0.5, -0.5, -1.5], [-2.25, -0.25, -2.25], [-3.5, -0.125, -4.0]], dtype=np.float32),
    np.array([1, 2, 40]),
)

# msgspec remembers what it made of a type, so the wire is tried in a process of its own.
_OVER_THE_WIRE = """
import numpy as np
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
found = LogprobsLists(np.array([[5, 9]]), np.array([[-0.5, -1.5]], dtype=np.float32), np.array([1]))
sent = EngineCoreOutputs(outputs=[EngineCoreOutput("r", [5], new_logprobs=found.slice_request(0, 1))])
[came] = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(sent)).outputs
print(list(came.new_logprobs))
"""


def processor(num_logprobs: int) -> Any:
    return LogprobsProcessor(
        tokenizer=None,
        logprobs=[],
        prompt_logprobs=None,
        cumulative_logprob=0.0,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=None,
    )


@pytest.mark.parametrize("num_logprobs", [0, 1, 2])
@pytest.mark.parametrize("request_index", [0, 1, 2])
def test_the_numbers_are_vllms(request_index: int, num_logprobs: int) -> None:
    theirs, ours = processor(num_logprobs), processor(num_logprobs)
    theirs._update_sample_logprobs(
        LogprobsLists(*(each[request_index : request_index + 1] for each in FOUND[:3]), None)
    )
    take_in(ours, numbers_of(FOUND, request_index, 1))
    assert [{token: each.logprob for token, each in at.items()} for at in ours.logprobs] == [
        {token: each.logprob for token, each in at.items()} for at in theirs.logprobs
    ]


def test_a_request_with_several_new_tokens_has_its_own() -> None:
    several = FOUND._replace(cu_num_generated_tokens=[0, 1, 3])
    assert numbers_of(several, 1, 2).logprob_token_ids == [[7, 8, 7], [3, 1, 2]]
    assert numbers_of(numbers_of(several, 1, 2), 0, 1).logprob_token_ids == [[7, 8, 7]]  # a stop string cuts them


def test_ranks_are_a_number_for_each_token() -> None:
    ranks = no_ranks(torch.zeros(3, 16), torch.zeros(3, 1))
    assert (ranks.tolist(), ranks.dtype) == ([0, 0, 0], torch.int64)


@pytest.mark.slow
def test_numbers_cross_the_wire_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, "1")
    said = subprocess.check_output([sys.executable, "-c", _OVER_THE_WIRE], text=True, timeout=120)
    assert said.splitlines()[-1] == "[[[5, 9]], [[-0.5, -1.5]], [], None]"


def test_vllms_own_engine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = [each for each in entry_points(group="vllm.general_plugins") if each.name == "kudos_lean_logprobs"]
    monkeypatch.delenv(ASKED, raising=False)
    before = sampler.batched_count_greater_than, LogprobsLists.slice_request, LogprobsProcessor._update_sample_logprobs
    found.load()()
    after = sampler.batched_count_greater_than, LogprobsLists.slice_request, LogprobsProcessor._update_sample_logprobs
    assert after == before
