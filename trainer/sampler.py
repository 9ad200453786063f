"""Fresh replies from vLLM, in this process, from the very weights that are being trained.

Each call samples from the policy with its adapter merged into the weights, which costs nothing per token, and returns
the sampled ids with the engine's own logprobs of them. The caller compares those with its own: see `trainer.ppo`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig

from trainer.backbone import Backbone
from trainer.optional_imports import without_optional


@dataclass(frozen=True)
class Rollout:
    prompt: list[int]
    reply: list[int]  # with its end token, if it ended
    logprobs: list[float]  # of the sampled tokens, at the sampling temperature
    ended: bool


class Samples(Protocol):
    """What the loop needs of a sampler."""

    def update(self, backbone: Backbone, weights: dict[str, Tensor]) -> None: ...

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Rollout]: ...


SEQUENCES = 256
"""Replies that are generated at the same time, at most."""
BLOCK_TOKENS = 128
"""The engine's cache grows by whole blocks; on CPU they are of this size."""


def cache_bytes(folder: Path, max_model_len: int, sequences: int, most_gib: float) -> int:
    """What the cached keys and values of as many whole sequences take, and at most this many GiB."""
    config = AutoConfig.from_pretrained(folder)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token: int = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * torch.bfloat16.itemsize
    blocks = sequences * math.ceil(max_model_len / BLOCK_TOKENS) + 1
    return min(int(most_gib * 2**30), blocks * BLOCK_TOKENS * token)


class Sampler:
    def __init__(
        self,
        folder: Path,
        *,
        end_id: int,
        max_model_len: int,
        sequences: int = SEQUENCES,
        seed: int = 0,
        memory_gib: int = 1,
    ) -> None:
        """sequences: how many replies to make room for; of more than that, the others wait."""
        self.end_id = end_id
        sequences = min(sequences, SEQUENCES)
        # Whoever sets the engine's own variable knows better.
        most_gib = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", memory_gib))
        # One process: the weights then go to the engine as tensors, and it starts within two seconds.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["KUDOS_LEAN_LOGPROBS"] = "1"  # nobody reads a token's rank, and to count it is a tenth of a step
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the server beside us needs the cores too
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if not torch.cuda.is_available():
            # vLLM compiles parts of its sampler even when told to be eager; here that costs more than it saves.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        room = cache_bytes(folder, max_model_len, sequences, most_gib)
        with without_optional():
            from vllm import LLM

            self._llm: Any = LLM(
                model=str(folder),
                skip_tokenizer_init=True,  # token ids in, token ids out
                dtype="bfloat16",
                enforce_eager=True,
                max_model_len=max_model_len,
                max_num_seqs=sequences,
                kv_cache_memory_bytes=room,
                # With the cache's size given, this is only what vLLM wants to find free on a GPU, where a server may
                # have most of it.
                gpu_memory_utilization=0.05,
                enable_prefix_caching=False,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                seed=seed,
                disable_log_stats=True,
            )

    def update(self, backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
        """Sample from these merged weights from now on."""
        state = backbone.merged_state(weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(state.items())})
        self._llm.reset_prefix_cache()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        ends: bool = True,
    ) -> list[Rollout]:
        """One reply for each prompt. top_p is 1 and top_k off: the logprobs are those of the whole distribution.

        ends: whether the end token ends a reply; without, each has max_tokens (for benchmarks).

        The engine runs in this process and draws from torch's global generator, so seeding that makes a rollout
        repeatable. (A seed per request would kill vLLM 0.32 on CPU where a prompt is prefilled in pieces: it rewinds
        a generator that cannot.)
        """
        from vllm import SamplingParams

        torch.manual_seed(seed)
        parameters = SamplingParams(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=max_tokens,
            logprobs=0,
            stop_token_ids=[self.end_id] if ends else [],
            ignore_eos=not ends,
            detokenize=False,
        )
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
        rollouts = []
        for prompt, output in zip(prompts, outputs, strict=True):
            completion = output.outputs[0]
            ids = list(completion.token_ids)
            logprobs = [step[token].logprob for step, token in zip(completion.logprobs, ids, strict=True)]
            rollouts.append(Rollout(list(prompt), ids, logprobs, completion.finish_reason == "stop"))
        return rollouts
