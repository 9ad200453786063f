"""vLLM behind the server's Protocol: one AsyncLLM, its adapters, its weights.

On CPU vLLM starts two processes that each import everything again (about 50 s to ready). Where one thread computes,
the engine is forked from this process instead, imports included, which takes 7 s; `server.preload` gives both the
allocator and OpenMP that vLLM would otherwise preload into its own. Forking is safe only while this process has no
threads: an engine that died is started again vLLM's own, slower way.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from feedback.replies import storable
from server import lean_logprobs
from server.engine import Chunk, Sampling
from server.errors import EngineDead, EngineError, RequestRefused
from server.settings import Settings

log = logging.getLogger("kudos.engine")

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_BACKGROUND = 1  # a request's priority; the smaller is served first
_PR_SET_PDEATHSIG = 1


class VllmEngine:
    def __init__(self, settings: Settings) -> None:
        _prepare_environment(settings)
        self._settings = settings
        self._llm: Any = None
        self._bases: set[str] = set()  # every version whose weights this engine has held
        self._adapters: dict[str, Any] = {}
        self._adapter_ids = itertools.count(1)  # never used twice: an id is one adapter's for the life of the engine
        self._score_ids = itertools.count(1)
        self._starts = 0
        self._max_model_len = 0

    @property
    def healthy(self) -> bool:
        return self._llm is not None and not self._llm.errored

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    async def start(self, version: str, folder: Path) -> None:
        await self.close()
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = current_platform.is_cpu()
        settings = self._settings
        options: dict[str, Any] = {
            "model": str(folder),
            "served_model_name": settings.model_name,
            "enforce_eager": not settings.compile_model,
            "enable_lora": True,
            "max_loras": settings.max_loras,
            # Never evicted behind our back: the engine would read the folder again, unverified, in mid-batch.
            "max_cpu_loras": 2 * settings.max_loras,
            # Not lm_head, which adapters here never touch: vLLM 0.32 on CPU then mixes up the rows of a probe's prompt
            # logprobs with those of the requests beside it, and the engine dies.
            "lora_target_modules": list(ADAPTED),
            "max_lora_rank": next(rank for rank in _LORA_RANKS if rank >= settings.max_lora_rank),
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "scheduling_policy": "priority",
            "generation_config": "vllm",  # sampling is the request's and ours, not the model folder's
            # vLLM keeps to the backend of its first constrained request, so it is not left to choose one by request.
            # Free white space is where a small model gets lost.
            "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
        }
        if settings.max_model_len is not None:
            options["max_model_len"] = settings.max_model_len
        if on_cpu:
            # Not to be left to vLLM, which cuts the prompts of seeded requests too (see `server.short_steps`).
            options["enable_chunked_prefill"] = False
        else:
            options["gpu_memory_utilization"] = settings.gpu_memory_share
            options["tensor_parallel_size"] = settings.tensor_parallel
        config = AsyncEngineArgs(**options).create_engine_config()
        if on_cpu:
            from server.short_steps import shortened

            config.scheduler_config.scheduler_cls = shortened(config.scheduler_config.get_scheduler_cls())
        if on_cpu and settings.engine_threads == 1 and self._starts == 0:
            config.parallel_config.distributed_executor_backend = "uni"
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        self._starts += 1
        with _children_die_with_us():
            self._llm = AsyncLLM.from_vllm_config(config)
        self._max_model_len = int(config.model_config.max_model_len)
        self._bases, self._adapters = {version}, {}
        await self._llm.update_weight_version(version)

    async def check(self, sampling: Sampling) -> None:
        if sampling.json_schema is None:
            return

        def convert() -> None:
            from vllm import SamplingParams
            from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

            validate_xgrammar_grammar(SamplingParams(structured_outputs=_constraint(sampling)))

        try:
            await asyncio.to_thread(convert)
        except Exception as error:
            raise self._translated(error) from error

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        version: str,
        *,
        background: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop) or None,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logprobs=sampling.top_logprobs,
            structured_outputs=_constraint(sampling),
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
        try:
            async with aclosing(
                self._llm.generate(
                    _tokens(prompt_token_ids),
                    params,
                    request_id,
                    lora_request=self._adapter(version),
                    priority=_BACKGROUND if background else 0,
                )
            ) as outputs:
                async for output in outputs:
                    completion = output.outputs[0]
                    ids = completion.token_ids
                    if completion.finish_reason == "error":  # as when its grammar could not be compiled
                        raise EngineError("the engine gave the reply up")
                    yield Chunk(
                        text=storable(completion.text),  # a client that sends it back is not to be refused for a NUL
                        token_ids=ids,
                        logprobs=[
                            position[token].logprob
                            for position, token in zip(completion.logprobs or (), ids, strict=False)
                        ],
                        finish_reason=completion.finish_reason,
                        cached_tokens=output.num_cached_tokens or 0,
                        likely=_likely(completion.logprobs, sampling.top_logprobs),
                    )
        except Exception as error:
            raise self._translated(error) from error

    async def score(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], version: str) -> list[float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        tokens = [*prompt_token_ids, *token_ids]
        # Prompt logprobs skip the sampling processors: they are those of temperature 1. Nothing is read from the prefix
        # cache for them, so they show the weights of now.
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request_id = f"probe-{next(self._score_ids)}"
        rows: Any = None
        try:
            async for output in self._llm.generate(
                _tokens(tokens), params, request_id, lora_request=self._adapter(version), priority=_BACKGROUND
            ):
                rows = output.prompt_logprobs
        except Exception as error:
            raise self._translated(error) from error
        start = len(prompt_token_ids)
        return [float(rows[at][tokens[at]].logprob) for at in range(start, len(tokens))]

    async def load_adapter(self, version: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        if version in self._adapters:
            return
        request = LoRARequest(lora_name=version, lora_int_id=next(self._adapter_ids), lora_path=str(folder))
        try:
            await self._llm.add_lora(request)
        except Exception as error:
            raise self._translated(error) from error
        self._adapters[version] = request

    async def drop_adapter(self, version: str) -> None:
        request = self._adapters.pop(version, None)
        if request is not None:
            await self._llm.remove_lora(request.lora_int_id)

    async def swap_full(self, version: str, folder: Path) -> None:
        try:
            # `keep` holds the running generations; their keys and values are recomputed under the new weights.
            await self._llm.pause_generation(mode="keep", clear_cache=True)
            try:
                await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
                await self._llm.update_weight_version(version)
                await self._llm.reset_prefix_cache(reset_running_requests=True)
            except Exception as error:
                # Some layers may be new and some old: nothing may be generated from such weights.
                await self.close()
                raise EngineDead(f"the swap to {version} failed halfway: {error}") from error
            self._bases |= {version, *self._adapters}
            self._adapters = {}
            await self._llm.resume_generation()
        except EngineError:
            raise
        except Exception as error:
            raise self._translated(error) from error

    async def reset_prefix_cache(self) -> None:
        await self._llm.reset_prefix_cache()

    async def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)

    def _adapter(self, version: str) -> Any:
        """None for base weights. A version that a swap has just taken away is answered by what took its place."""
        if version in self._adapters:
            return self._adapters[version]
        if version not in self._bases:
            raise EngineError(f"{version} is not in the engine")
        return None

    def _translated(self, error: Exception) -> EngineError:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineError):
            return error
        if isinstance(error, EngineDeadError) or not self.healthy:
            return EngineDead("the engine died")
        if isinstance(error, VLLMClientError | ValueError):
            return RequestRefused(str(error))
        return EngineError(f"the engine failed: {type(error).__name__}")


def _constraint(sampling: Sampling) -> Any:
    if sampling.json_schema is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=json.dumps(sampling.json_schema))


def _likely(logprobs: Any, count: int) -> list[list[tuple[int, float]]]:
    """vLLM names the sampled token at every position, also where it is not among the most likely."""
    if not count:
        return []
    return [
        sorted(((token, each.logprob) for token, each in position.items()), key=lambda pair: -pair[1])[:count]
        for position in logprobs or ()
    ]


def _tokens(token_ids: Sequence[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": list(token_ids)}


def _prepare_environment(settings: Settings) -> None:
    """Before vLLM or torch is imported."""
    lean_logprobs.ask()
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.kv_cache_gib))
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.engine_threads))
    if not settings.compile_model and _made_for_cpu():
        # vLLM compiles a few small functions of its sampler even when told to be eager, anew for each kind of batch:
        # every stream stands still for seconds, and a C++ compiler must be there.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _made_for_cpu() -> bool:
    """Whether the installed vLLM is the build for CPUs; nothing heavy is imported to know it."""
    try:
        return bool(installed_version("vllm-cpu"))
    except PackageNotFoundError:
        return False


class _children_die_with_us:
    """Engines forked inside the block are killed when this process is: kill -9 must not leave one behind."""

    _registered = False
    _active = False

    def __enter__(self) -> None:
        cls = type(self)
        if not cls._registered:
            os.register_at_fork(after_in_child=cls._after_fork)
            cls._registered = True
        cls._active = True

    def __exit__(self, *_: object) -> None:
        type(self)._active = False

    @classmethod
    def _after_fork(cls) -> None:
        if cls._active:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
