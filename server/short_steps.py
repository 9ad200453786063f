"""New turns enter the engine a few at a time on a CPU, so that none of those who read stands still for all who ask.

A step computes the prompts of every turn that enters with it, and each stream waits for its next token until the step
is done. Where prompts are not prefilled in pieces (see `server.vllm_engine`), ten turns that begin together are one
long step. Here a step takes in prompts that take about half as long again as the running turns' tokens do; the others
wait for the next step, which they would have spent in the long one.
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


def prompt_tokens(running: int, first: int, returning: int) -> int:
    """How many tokens of prompts a step may take in. running: turns that go on; first: tokens of the turn that is next,
    which enters whatever its length; returning: tokens of the turns that were put back, which all do."""
    return max(LEAST_PROMPT_TOKENS, PROMPT_TOKENS_EACH_RUNNING * running, first, returning)


class _Short:
    """Lowers vLLM's bound on a step's tokens, anew for each step."""

    max_num_scheduled_tokens: int
    running: list[Any]
    waiting: Any

    def schedule(self, throttle_prefills: bool = False) -> Any:
        bound, running = self.max_num_scheduled_tokens, len(self.running)  # of which each takes one token
        first, returning = 0, 0
        if self.waiting:
            turn = self.waiting.peek_request()
            first = turn.num_tokens
            if turn.status is RequestStatus.PREEMPTED:  # they came before those that have not begun
                returning = sum(each.num_tokens for each in self.waiting if each.status is RequestStatus.PREEMPTED)
        self.max_num_scheduled_tokens = min(bound, running + prompt_tokens(running, first, returning))
        try:
            return super().schedule(throttle_prefills)  # type: ignore[misc]  # vLLM's, in the classes below
        finally:
            self.max_num_scheduled_tokens = bound


class ShortSteps(_Short, Scheduler):  # type: ignore[misc]  # vLLM has no types
    pass


class AsyncShortSteps(_Short, AsyncScheduler):  # type: ignore[misc]
    pass


def shortened(scheduler: type) -> type:
    """The class of vLLM's that a config has chosen, with short steps."""
    return AsyncShortSteps if issubclass(scheduler, AsyncScheduler) else ShortSteps
