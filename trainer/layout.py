"""Where each of a batch's votes finds its replies among those that one pass reads.

Shapes: P pairs, S single replies, U contrasts (see `trainer.unrelated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.examples import PairExample, VoteExample
from trainer.unrelated import Contrast


class Layout(NamedTuple):
    """Which replies a batch of votes reads, and where each vote finds its own."""

    prompts: list[list[int]]
    replies: list[list[int]]
    pairs_P2: Tensor
    thumbs_S: Tensor
    contrasts_U2: Tensor  # the own reply, and the unrelated one


def lay_out(examples: Sequence[VoteExample], contrasts: Sequence[Contrast | None]) -> Layout:
    """Neighbours share their prompt, and the pairs of a ranking their replies too."""
    prompts: list[list[int]] = []
    replies: list[list[int]] = []
    read: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}

    def place(example: VoteExample, reply: list[int]) -> int:
        found = len(replies)
        if isinstance(example, PairExample) and example.ranking is not None:
            found = read.setdefault((example.ranking, tuple(example.prompt), tuple(reply)), found)
        if found == len(replies):
            prompts.append(example.prompt)
            replies.append(reply)
        return found

    pairs: list[list[int]] = []
    thumbs: list[int] = []
    unrelated: list[list[int]] = []
    for example, contrast in zip(examples, contrasts, strict=True):
        if isinstance(example, PairExample):
            sides = [example.left, example.right]
            places = [place(example, side) for side in sides]
            pairs.append(places)
        else:
            sides = [example.reply]
            places = [place(example, example.reply)]
            thumbs += places
        if contrast is not None:
            unrelated.append([places[sides.index(contrast.own)], place(example, contrast.unrelated)])
    pairs_P2, contrasts_U2 = (torch.tensor(each, dtype=torch.long).view(-1, 2) for each in (pairs, unrelated))
    return Layout(prompts, replies, pairs_P2, torch.tensor(thumbs, dtype=torch.long), contrasts_U2)
