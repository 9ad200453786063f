"""Prompts and replies as one right-padded batch.

Right padding with causal attention needs no mask: a real token never sees what comes after it, so padding cannot
change a logprob, a value or a score, and positions simply count from 0.

Shapes: B sequences, T tokens of prompt and reply together, R tokens of the longest reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    input_ids_BT: Tensor  # int64, right-padded
    prompt_lengths_B: Tensor
    reply_lengths_B: Tensor  # at least 1

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], pad_id: int) -> Batch:
        if len(prompts) != len(replies) or not prompts:
            raise ValueError(f"{len(prompts)} prompts and {len(replies)} replies: need as many of each, and some")
        rows = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
        if any(not reply or not prompt for prompt, reply in zip(prompts, replies, strict=True)):
            raise ValueError("a prompt or a reply is empty")
        longest = max(map(len, rows))
        input_ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
        for row, ids in enumerate(rows):
            input_ids_BT[row, : len(ids)] = torch.tensor(ids)
        return cls(
            input_ids_BT,
            torch.tensor([len(prompt) for prompt in prompts]),
            torch.tensor([len(reply) for reply in replies]),
        )

    def __len__(self) -> int:
        return self.input_ids_BT.shape[0]

    @property
    def lengths_B(self) -> Tensor:
        return self.prompt_lengths_B + self.reply_lengths_B

    @property
    def reply_mask_BR(self) -> Tensor:
        return torch.arange(int(self.reply_lengths_B.max()))[None, :] < self.reply_lengths_B[:, None]

    @property
    def predicting_BR(self) -> Tensor:
        """Where each reply token is predicted from: position `prompt − 1 + t` (clamped where there is no token)."""
        steps_R = torch.arange(int(self.reply_lengths_B.max()))
        return (self.prompt_lengths_B[:, None] - 1 + steps_R[None, :]).clamp(max=self.input_ids_BT.shape[1] - 1)

    @property
    def reply_ids_BR(self) -> Tensor:
        return self.input_ids_BT.gather(1, (self.predicting_BR + 1).clamp(max=self.input_ids_BT.shape[1] - 1))

    def select(self, index: Tensor) -> Batch:
        """The rows `index`, cut to their own longest length."""
        lengths_B = self.lengths_B[index]
        return Batch(
            self.input_ids_BT[index, : int(lengths_B.max())],
            self.prompt_lengths_B[index],
            self.reply_lengths_B[index],
        )

    def by_length(self, max_tokens: int) -> list[Tensor]:
        """Row indices in groups of similar length, each of at most `max_tokens` padded tokens (or a single row)."""
        order = torch.argsort(self.lengths_B, descending=True, stable=True)
        groups: list[Tensor] = []
        start = 0
        while start < len(order):
            rows = max(1, max_tokens // int(self.lengths_B[order[start]]))
            groups.append(order[start : start + rows])
            start += rows
        return groups
