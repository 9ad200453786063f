"""What the server needs of an inference engine: a small Protocol, and the values that cross it.

Not an abstraction over engines in general. `vllm_engine` is the one that serves; tests put another behind it where a
fault cannot be caused otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    json_schema: Mapping[str, Any] | None = None  # set: the reply is JSON that this JSON Schema allows
    top_logprobs: int = 0  # how many of each position's most likely tokens to tell; 0: the sampled one alone

    def variant(self, number: int) -> Sampling:
        """For one of several replies to one question: a seed that they shared would make them one reply."""
        return self if self.seed is None else replace(self, seed=self.seed ^ number)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came out of the engine since the last chunk."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]  # of the sampled tokens, after temperature and top_p
    finish_reason: str | None = None  # stop, length; None while it goes on
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    likely: Sequence[Sequence[tuple[int, float]]] = ()  # each position's most likely (id, logprob), best first


class Engine(Protocol):
    """One set of base weights, and adapters on it. Versions are policy versions.

    A version that a full swap took away between routing and generating is answered by the weights that came: the
    caller, who counts swaps, marks such a reply as mixed. One that was never there, or was dropped, is an EngineError.
    """

    async def start(self, version: str, folder: Path) -> None:
        """Load the weights of `folder` as `version`. Called again after the engine died."""

    async def check(self, sampling: Sampling) -> None:
        """Raises RequestRefused for a constraint that the engine cannot keep to."""

    def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        version: str,
        *,
        background: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        """Ends after a chunk with a finish reason. Closing the iterator, or cancelling, ends the generation.

        What runs in the background waits for everything that does not.

        Raises:
            EngineDead, RequestRefused
        """
        ...

    async def score(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], version: str) -> list[float]:
        """The logprob of each of `token_ids` after the prompt and those before it, at temperature 1."""
        ...

    async def load_adapter(self, version: str, folder: Path) -> None: ...

    async def drop_adapter(self, version: str) -> None: ...

    async def swap_full(self, version: str, folder: Path) -> None:
        """Replace the base weights. Running generations are held, then go on under the new ones; adapters are gone.

        Raises:
            EngineDead: the weights may be a mix of old and new; only a restart helps.
        """

    async def reset_prefix_cache(self) -> None: ...

    @property
    def healthy(self) -> bool: ...

    @property
    def max_model_len(self) -> int: ...

    async def close(self) -> None: ...
