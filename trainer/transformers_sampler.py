"""Fresh replies where vLLM is not installed: transformers' own generation, from the weights that are being trained.

The same distribution as vLLM's, so a run differs only in speed and in bf16's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from trainer.backbone import Backbone, Weights
from trainer.sampler import Rollout

ROWS = 256
"""Replies that are generated together, at most."""


class Recorder(LogitsProcessor):  # type: ignore[misc]
    """Divides by the temperature, and keeps the logprob of each token that was drawn, not the table it was drawn
    from."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.drawn: list[Tensor] = []  # (B,) each
        self._table_BV: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.close(input_ids)
        scaled_BV = scores.float() / self.temperature
        self._table_BV = torch.log_softmax(scaled_BV, dim=-1)
        return scaled_BV

    def close(self, ids_BT: Tensor) -> None:
        """The newest of these tokens was drawn from the table at hand."""
        if self._table_BV is not None:
            self.drawn.append(self._table_BV.gather(1, ids_BT[:, -1:]).squeeze(1))


class TransformersSampler:
    """`trainer.sampler.Samples`, as `trainer.sampler.Sampler` is."""

    def __init__(
        self,
        folder: Path,
        *,
        end_id: int,
        max_model_len: int,
        sequences: int = ROWS,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | None = None,
    ) -> None:
        """sequences: how many replies to generate at the same time, at most ROWS. device: unset, the CPU."""
        self.end_id, self.max_model_len, self.rows = end_id, max_model_len, min(sequences, ROWS)
        self.device = device or torch.device("cpu")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(self.device)
        # Not the model's own, which may penalise repetition or cut the distribution: then it is not what is trained.
        self._model.generation_config = GenerationConfig()

    def update(self, backbone: Backbone, weights: Weights) -> None:
        """Sample from these merged weights from now on."""
        missing = self._model.load_state_dict(backbone.merged_state(weights), strict=False)
        assert not missing.unexpected_keys, f"weights that the model does not know: {missing.unexpected_keys}"

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        ends: bool = True,
    ) -> list[Rollout]:
        """One reply for each prompt, in their order; the seed makes it repeatable.

        ends: whether the end token ends a reply; without, each has max_tokens (for benchmarks).
        """
        torch.manual_seed(seed)
        # Prompts of like length together: generation pads them all to the longest.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self.rows):
            rows = order[start : start + self.rows]
            generated = self._generate([list(prompts[row]) for row in rows], max_tokens, temperature, ends)
            rollouts.update(zip(rows, generated, strict=True))
        return [rollouts[row] for row in range(len(prompts))]

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], max_tokens: int, temperature: float, ends: bool) -> list[Rollout]:
        width = max(map(len, prompts))
        ids_BT = torch.tensor(
            [[self.end_id] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device
        )
        mask_BT = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device
        )
        recorder = Recorder(temperature)
        found_BT = self._model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            do_sample=True,
            logits_processor=LogitsProcessorList([recorder]),
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_new_tokens=min(max_tokens, self.max_model_len - width),
            eos_token_id=self.end_id if ends else None,
            pad_token_id=self.end_id,
        )
        recorder.close(found_BT)
        chosen_BR, logprobs_BR = found_BT[:, width:], torch.stack(recorder.drawn, dim=1)
        rollouts = []
        for prompt, chosen, logprobs in zip(prompts, chosen_BR.tolist(), logprobs_BR.tolist(), strict=True):
            ended = ends and self.end_id in chosen
            length = chosen.index(self.end_id) + 1 if ended else len(chosen)
            rollouts.append(Rollout(prompt, chosen[:length], logprobs[:length], ended))
        return rollouts
