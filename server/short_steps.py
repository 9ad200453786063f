"""New turns enter the engine a few at a time on a CPU, so that none of those who read stands still for all who ask.

A step computes the prompts of every turn that enters with it, and each stream waits for its next token until the step
is done. Ten turns that begin together would be one long step, and so would one long prompt. Here a step takes in
prompts that take about half as long again as the running turns' tokens do: others wait for the next step, which they
would have spent in the long one, and a prompt that is longer than that is computed in pieces.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

PROMPT_TOKENS_EACH_RUNNING = 4
"""A prompt's token takes an eighth of a reply's, which has its place in the batch, its sampling and its logprobs."""
LEAST_PROMPT_TOKENS = 128
"""When few turns run."""


def prompt_tokens(running: int, policies: int = 1) -> int:
    """How many tokens of prompts a step takes in.

    Args:
        running: turns that go on.
        policies: whose turns are in the step. Those of two take a third longer than as many of one, as in a swap, when
            moreover no prompt is in the new one's cache: they take in half.
    """
    tokens = max(LEAST_PROMPT_TOKENS, PROMPT_TOKENS_EACH_RUNNING * running)
    return tokens if policies <= 1 else tokens // 2


def in_pieces(turn: Any) -> bool:
    """Whether its prompt may be computed in pieces.

    vLLM draws a token after each piece and takes all but the last one back. Where a request has a seed it rewinds the
    request's generator for that, which on CPU cannot be rewound, and the engine dies. A probe's prompt logprobs stay in
    one piece too, so that they show what they are asked for: the weights of one moment.
    """
    sampling = turn.sampling_params
    return sampling is not None and sampling.seed is None and sampling.prompt_logprobs is None


def _adapter_of(turn: Any) -> int:
    return 0 if turn.lora_request is None else int(turn.lora_request.lora_int_id)


class _Short:
    """Lowers vLLM's bound on a step's tokens, and lets it cut a prompt that is longer, anew for each step."""

    max_num_scheduled_tokens: int
    scheduler_config: Any
    running: list[Any]
    waiting: Any

    def schedule(self, throttle_prefills: bool = False) -> Any:
        bound, running = self.max_num_scheduled_tokens, len(self.running)  # of which each takes one token
        turn = self.waiting.peek_request() if self.waiting else None
        together = self.running if turn is None else [*self.running, turn]
        entering, cut = prompt_tokens(running, len({_adapter_of(each) for each in together})), False
        if turn is not None:
            if turn.status is RequestStatus.PREEMPTED:  # put back, before those that have not begun: all return
                returning = sum(each.num_tokens for each in self.waiting if each.status is RequestStatus.PREEMPTED)
                entering = max(entering, returning)
            # Where nobody reads meanwhile a piece would only be late. All are asked, not the first one alone: of a long
            # prompt that is in the cache little is left, and the next one would be cut.
            cut = running > 0 and turn.num_tokens > entering and all(in_pieces(each) for each in self.waiting)
            if not cut:
                entering = max(entering, turn.num_tokens)
        self.max_num_scheduled_tokens = min(bound, running + entering)
        self.scheduler_config.enable_chunked_prefill = cut
        try:
            return super().schedule(throttle_prefills)  # type: ignore[misc]  # vLLM's, in the classes below
        finally:
            self.max_num_scheduled_tokens = bound
            self.scheduler_config.enable_chunked_prefill = False


class ShortSteps(_Short, Scheduler):  # type: ignore[misc]  # vLLM has no types
    pass


class AsyncShortSteps(_Short, AsyncScheduler):  # type: ignore[misc]
    pass


def shortened(scheduler: type) -> type:
    """The class of vLLM's that a config has chosen, with short steps."""
    return AsyncShortSteps if issubclass(scheduler, AsyncScheduler) else ShortSteps
