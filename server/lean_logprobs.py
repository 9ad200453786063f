"""Logprobs from vLLM's engine without what kudos never reads of them: ranks, and each token spelled by itself.

kudos logs the logprob of every token, so what vLLM 0.32 does for a few curious clients it does here for all: it counts
how many of the vocabulary are likelier than the token (a twelfth of a step on CPU), sends three arrays for every token
of every reply, which Python packs and unpacks one by one, and decodes each token to a text of its own, which is a sixth
of the server's work. Here there are no ranks, numbers cross as numbers, and `server.vocabulary` spells the tokens of
the few who ask.

vLLM loads this as a plugin in every process of an engine. Both ends of the wire must have it, and vLLM's own server
needs what is left out, so it does nothing in an engine that kudos did not start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ASKED = "KUDOS_LEAN_LOGPROBS"


def ask() -> None:
    """Before vLLM is imported: this process's engines, and the processes that they start, are to be lean."""
    os.environ[ASKED] = "1"


def install() -> None:
    """Put the three where vLLM looks for its own."""
    if ASKED not in os.environ:
        return
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists
    from vllm.v1.sample import sampler

    sampler.batched_count_greater_than = no_ranks
    # msgspec goes by these when it reads an engine's output: plain lists need no Python.
    LogprobsLists.__annotations__.update(
        logprob_token_ids=list[list[int]], logprobs=list[list[float]], sampled_token_ranks=list[int]
    )
    LogprobsLists.slice_request = numbers_of
    LogprobsProcessor._update_sample_logprobs = take_in


def no_ranks(logprobs_BV: Tensor, sampled_B1: Tensor) -> Tensor:
    """(B,), zeros. B: tokens, V: vocabulary."""
    import torch

    return torch.zeros(len(logprobs_BV), dtype=torch.int64, device=logprobs_BV.device)


def numbers_of(found: Any, request: int, positions: int) -> Any:
    """The ids and logprobs of one request's tokens, as lists: for each the sampled one, then the likeliest."""
    import numpy as np

    start = request if found.cu_num_generated_tokens is None else found.cu_num_generated_tokens[request]
    end = start + positions
    ids, logprobs = np.asarray(found.logprob_token_ids), np.asarray(found.logprobs)  # lists, where it was done before
    return type(found)(ids[start:end].tolist(), logprobs[start:end].tolist(), [])


def take_in(processor: Any, found: Any) -> None:
    """Keeps a {token id: Logprob} for each of a reply's new tokens, with as many of the likeliest as it asked for."""
    from vllm.logprobs import Logprob

    kept = processor.num_logprobs + 1  # others in the batch may have asked for more
    for ids, logprobs in zip(found.logprob_token_ids, found.logprobs, strict=True):
        processor.logprobs.append(dict(zip(ids[:kept], map(Logprob, logprobs), strict=False)))
