"""Prompts and replies, packed: no position is padding.

Neighbours that answer the same prompt share it: its tokens run once, and each reply follows as a branch of its own
that sees the prompt and itself. Positions go on from the prompt's end in every branch, so each logprob, value and score
is what it would be if the reply stood alone.

Tokens lie one after another; only attention sees a grid, of prompts by positions. What is read, is read from the last
token of a prompt and from the replies' tokens, so the uppermost layer computes nothing else.

Packed batches would come in ever new shapes, and oneDNN compiles a product anew for each: that can take longer than the
product. So products get whole multiples of rows, of which the last are padding that nobody reads, and the grid is
rounded up.

Shapes: P prompts, B replies, N tokens in all, C tokens that are read, R tokens of the longest reply, T positions of the
longest row (a prompt with all of its replies) and up to the next multiple, Q of them read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, POSITIONS = 64, 8
"""Of products, and of attention's grid: their sizes are multiples of these."""


def rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def padded(x: Tensor) -> Tensor:
    """With zeros below, to a multiple of ROWS."""
    more = rounded_up(len(x), ROWS) - len(x)
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, more)) if more else x


@dataclass(frozen=True)
class Row:
    prompt: Sequence[int]
    replies: list[Sequence[int]]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(map(len, self.replies))


class Batch:
    """Index tensors over the packed tokens of some rows."""

    ids_N: Tensor
    positions_N: Tensor
    slot_N: Tensor  # of P·T: the token's place in attention's grid
    read_C: Tensor  # of N: the tokens that are read, prompt by prompt
    read_slot_C: Tensor  # of P·Q
    reply_ids_BR: Tensor
    reply_mask_BR: Tensor
    reply_lengths_B: Tensor  # at least 1
    token_BR: Tensor  # of C: where each token of a reply lies
    predicting_BR: Tensor  # of C: where it is predicted from, which is the token before it

    def __init__(self, rows: Sequence[Row], device: torch.device | None = None) -> None:
        """device: where the tensors lie; unset: on the CPU."""
        self.rows = rows
        self.device = device or torch.device("cpu")
        self._masks: dict[tuple[torch.dtype, bool], Tensor] = {}
        self.prompts = len(rows)
        self.row_tokens = rounded_up(max(row.length for row in rows), POSITIONS)
        self.row_reads = rounded_up(max(row.length - len(row.prompt) + 1 for row in rows), POSITIONS)
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        branches: list[int] = []
        reads: list[int] = []
        read_slots: list[int] = []
        replies: list[Sequence[int]] = []
        ends: list[int] = []  # of each reply's prompt, among the tokens that are read
        starts: list[int] = []  # of each reply, among the tokens that are read
        for index, row in enumerate(rows):
            first, width = len(ids), len(row.prompt)
            end = len(reads)
            reads += range(first + width - 1, first + row.length)
            read_slots += range(index * self.row_reads, index * self.row_reads + row.length - width + 1)
            slots += range(index * self.row_tokens, index * self.row_tokens + row.length)
            ids += row.prompt
            positions += range(width)
            branches += [0] * width
            start = end + 1
            for branch, reply in enumerate(row.replies, 1):
                ids += reply
                positions += range(width, width + len(reply))
                branches += [branch] * len(reply)
                replies.append(reply)
                ends.append(end)
                starts.append(start)
                start += len(reply)
        self.ids_N, self.positions_N, self.slot_N = self._index(ids), self._index(positions), self._index(slots)
        self.read_C, self.read_slot_C = self._index(reads), self._index(read_slots)
        self._branch_N = self._index(branches)
        lengths = [len(reply) for reply in replies]
        self.reply_lengths_B = self._index(lengths)
        steps_R = torch.arange(max(lengths), device=self.device)
        self.reply_mask_BR = steps_R < self.reply_lengths_B[:, None]
        self.token_BR = (self._index(starts)[:, None] + steps_R).where(self.reply_mask_BR, 0)
        self.predicting_BR = torch.cat([self._index(ends)[:, None], self.token_BR[:, :-1]], dim=1)
        self.reply_ids_BR = torch.zeros_like(self.reply_mask_BR, dtype=torch.long).masked_scatter(
            self.reply_mask_BR, self._index([token for reply in replies for token in reply])
        )

    def _index(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        replies: Sequence[Sequence[int]],
        device: torch.device | None = None,
        *,
        shared: bool = True,
    ) -> Batch:
        """One prompt for each reply. shared: neighbours with the same prompt become one row; else each is its own."""
        if len(prompts) != len(replies) or not prompts:
            raise ValueError(f"{len(prompts)} prompts and {len(replies)} replies: need as many of each, and some")
        rows: list[Row] = []
        for prompt, reply in zip(prompts, replies, strict=True):
            if not prompt or not reply:
                raise ValueError("a prompt or a reply is empty")
            if shared and rows and list(rows[-1].prompt) == list(prompt):
                rows[-1].replies.append(reply)
            else:
                rows.append(Row(prompt, [reply]))
        return cls(rows, device)

    def __len__(self) -> int:
        """Replies."""
        return len(self.reply_lengths_B)

    @cached_property
    def _seen_PTT(self) -> Tensor:
        """Which position (last axis) each position sees."""
        branch_PT = self._branch_N.new_full((self.prompts * self.row_tokens,), -1)
        branch_PT = branch_PT.index_copy(0, self.slot_N, self._branch_N).view(self.prompts, self.row_tokens)
        same_PTT = (branch_PT[:, None, :] == 0) | (branch_PT[:, None, :] == branch_PT[:, :, None])
        return same_PTT & same_PTT.new_ones(self.row_tokens, self.row_tokens).tril()

    def mask(self, dtype: torch.dtype, *, read: bool) -> Tensor:
        """(P, 1, T, T), or (P, 1, Q, T) for the tokens that are read alone: added to attention's scores."""
        if (dtype, read) not in self._masks:
            seen = self._seen_PTT
            if read:
                last_P = self._index([len(row.prompt) - 1 for row in self.rows])
                reads_Q = torch.arange(self.row_reads, device=self.device)
                at_PQ = (last_P[:, None] + reads_Q).clamp(max=self.row_tokens - 1)
                seen = seen.gather(1, at_PQ[:, :, None].expand(-1, -1, self.row_tokens))
            low = torch.finfo(dtype).min
            self._masks[dtype, read] = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, low)[:, None]
        return self._masks[dtype, read]

    def select(self, rows: Tensor) -> Part:
        """The prompts `rows` with all of their replies."""
        chosen = rows.tolist()
        first_reply, first_token = self._firsts
        return Part(
            Batch([self.rows[row] for row in chosen], self.device),
            rows,
            torch.cat([torch.arange(*first_reply[row]) for row in chosen]).to(self.device),
            torch.cat([torch.arange(*first_token[row]) for row in chosen]).to(self.device),
        )

    @cached_property
    def _firsts(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Each row's range of replies, and of tokens."""
        replies, tokens = [0], [0]
        for row in self.rows:
            replies.append(replies[-1] + len(row.replies))
            tokens.append(tokens[-1] + row.length)
        return list(pairwise(replies)), list(pairwise(tokens))

    def by_length(self, max_tokens: int, among: Tensor | None = None, *, multiple: int = 1) -> list[Part]:
        """All rows (or those `among` them) in parts of neighbours in length, each with a grid of at most `max_tokens`
        positions (or of a single row). No part is much larger than another, and they are a whole multiple of so many,
        where there are enough rows."""
        index = torch.arange(self.prompts) if among is None else among
        lengths = torch.tensor([self.rows[row].length for row in index.tolist()])
        lengths, order = lengths.sort(descending=True, stable=True)
        widths = [rounded_up(length, POSITIONS) for length in lengths.tolist()]

        def cuts(limit: int) -> list[int]:
            starts = [0]
            while starts[-1] < len(widths):
                starts.append(starts[-1] + max(1, limit // widths[starts[-1]]))
            return starts

        most = rounded_up(len(cuts(max_tokens)) - 1, multiple)
        limit = bisect_left(range(max_tokens), True, key=lambda limit: len(cuts(limit)) - 1 <= most)
        return [self.select(index[order[start:stop]]) for start, stop in pairwise(cuts(limit))]


@dataclass(frozen=True)
class Part:
    """Some rows of a batch, and where they lie in it."""

    batch: Batch
    rows: Tensor  # on the CPU, as batches are cut there; the others are where the batch is
    replies: Tensor
    tokens: Tensor

    @property
    def read(self) -> Tensor:
        """Where the tokens that are read lie in the whole batch."""
        return self.tokens[self.batch.read_C]
