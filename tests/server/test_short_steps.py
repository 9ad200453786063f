"""vLLM's own scheduler takes in a few new turns a step, forgets none, and never lets one that is long wait for ever."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from server.short_steps import AsyncShortSteps, ShortSteps, prompt_tokens, shortened
from trainer.tiny.build import MODEL_FOLDER

BLOCK = 16


@pytest.fixture(scope="module")
def config() -> Any:
    found = AsyncEngineArgs(
        model=str(MODEL_FOLDER),
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        scheduling_policy="priority",
        enforce_eager=True,
    ).create_engine_config()
    found.cache_config.num_gpu_blocks = 1000
    return found


def make_scheduler(config: Any, kind: type) -> Any:
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.bfloat16)
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=1000, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )


def ask(scheduler: Any, lengths: Sequence[int], adapters: Sequence[int] = (), **sampling: Any) -> None:
    for number, length in enumerate(lengths):
        params = SamplingParams(max_tokens=100, ignore_eos=True, **sampling)
        adapter = adapters[number] if adapters else 0
        lora = LoRARequest(f"v{adapter}", adapter, lora_path=f"v{adapter}") if adapter else None
        turn = Request(
            f"r{number}", [5] * length, params, None, arrival_time=float(number), lora_request=lora, block_hasher=None
        )
        scheduler.add_request(turn)


def step(scheduler: Any) -> dict[str, int]:
    """The tokens of each turn in the next step, which is then over."""
    planned = scheduler.schedule()
    ids = list(planned.num_scheduled_tokens)
    scheduler.update_from_output(
        planned,
        ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={each: index for index, each in enumerate(ids)},
            sampled_token_ids=[[] if scheduler.requests[each].is_prefill_chunk else [7] for each in ids],
        ),
    )
    return dict(planned.num_scheduled_tokens)


def test_turns_that_begin_together_enter_a_few_at_a_time(config: Any) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [40] * 10)
    steps = [step(scheduler) for _ in range(5)]
    assert [list(each.values()) for each in steps] == [
        [40] * 3,
        [1] * 3 + [40] * 3,
        [1] * 6 + [40] * 3,
        [1] * 9 + [40],
        [1] * 10,
    ]


def test_the_same_turns_are_one_long_step_of_vllms(config: Any) -> None:
    scheduler = make_scheduler(config, Scheduler)
    ask(scheduler, [40] * 10)
    assert list(step(scheduler).values()) == [40] * 10


def test_a_prompt_longer_than_that_is_computed_in_pieces(config: Any) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [100, 300, 20])
    assert [step(scheduler) for _ in range(5)] == [
        {"r0": 100},
        {"r0": 1, "r1": 128},
        {"r0": 1, "r1": 129},
        {"r0": 1, "r1": 43, "r2": 20},
        {"r0": 1, "r1": 1, "r2": 1},
    ]


def test_the_rest_of_a_prompt_is_computed_as_fast_where_nobody_waits(config: Any) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [100, 300])
    steps = [step(scheduler) for _ in range(4)]
    assert steps == [{"r0": 100}, {"r0": 1, "r1": 128}, {"r0": 1, "r1": 129}, {"r0": 1, "r1": 43}]


def test_a_step_of_two_policies_takes_in_half(config: Any) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [40] * 5, adapters=[1, 2, 2, 2, 2])
    assert [list(step(scheduler).values()) for _ in range(3)] == [[40] * 3, [1] * 3 + [40], [1] * 4 + [40]]


@pytest.mark.parametrize("sampling", [{"seed": 1}, {"prompt_logprobs": 0}])
def test_what_must_stay_whole_enters_alone_and_in_its_place(config: Any, sampling: dict[str, Any]) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [100, 700, 20], **sampling)
    assert [step(scheduler) for _ in range(3)] == [
        {"r0": 100},
        {"r0": 1, "r1": 700},
        {"r0": 1, "r1": 1, "r2": 20},
    ]


def test_where_nobody_reads_nothing_is_cut(config: Any) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [700, 20])
    assert [step(scheduler) for _ in range(2)] == [{"r0": 700}, {"r0": 1, "r1": 20}]


def test_turns_that_were_put_back_return_together(config: Any) -> None:
    scheduler = make_scheduler(config, ShortSteps)
    ask(scheduler, [40] * 10)
    while len(step(scheduler)) < 10:
        pass
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    back = step(scheduler)
    assert len(back) == 10
    assert min(back.values()) > 40, "what they have said is computed again too"


def test_the_more_run_the_more_enter() -> None:
    assert prompt_tokens(0) == prompt_tokens(10) == 128
    assert prompt_tokens(64) == 256
    assert (prompt_tokens(10, policies=2), prompt_tokens(64, policies=3)) == (64, 128)


@pytest.mark.parametrize(("chosen", "short"), [(Scheduler, ShortSteps), (AsyncScheduler, AsyncShortSteps)])
def test_whichever_scheduler_vllm_has_chosen_is_kept(chosen: type, short: type) -> None:
    assert shortened(chosen) is short
    assert issubclass(short, chosen)
