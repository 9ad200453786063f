"""The reward model: an ensemble of small adapters and heads on the frozen backbone, fitted to votes.

Each member gives one score, at a reply's last token (its end). Its adapter acts on replies alone: they see their
prompts as the frozen layers do, whose keys and values one pass makes for all members. Members differ in their random
start alone, which is enough for them to differ where the votes do not speak clearly (deep ensembles: Lakshminarayanan
et al. 2017, arXiv 1612.01474).

Shapes: M members, B sequences, T tokens, H hidden.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feedback.run_files import PART
from trainer.backbone import Backbone, Trace, Weights
from trainer.batches import Batch, Part
from trainer.config import RewardModelConfig
from trainer.device import passes
from trainer.errors import OtherRewardModel
from trainer.examples import SURFACES, PairExample, ThumbExample, VoteExample
from trainer.fused import precise
from trainer.layout import lay_out
from trainer.likelihood import VoteModel
from trainer.logprobs import reply_logprobs
from trainer.lora import LoraAdapter
from trainer.surprise import COLUMNS, surprise
from trainer.unrelated import Contrast, Unrelated
from trainer.workers import each_part, even_parts, side_by_side


class Shared(NamedTuple):
    """What all members read of a batch: frozen, so computed once."""

    trace: Trace  # of the frozen model's pass: what the adapted layers take, and their keys and values
    surprise_CF: Tensor  # of its tokens (see `trainer.surprise`)


class Member(nn.Module):
    """One adapter and a linear head.

    The head reads the hidden state of a position, and the mean and the sum of the reply's states up to it: manner shows
    anywhere in a reply, people also count, and a small model's last state alone remembers little of either. A second
    head reads how likely the frozen model finds the tokens, which tells whether they are to the point. All is causal,
    so that every position has a score: what the reply would be worth if it ended there. The critic starts from just
    that. A state's weights and the mean's are drawn from N(0, 1/√(d+1)) (Stiennon et al. 2020), the others start at 0.
    """

    def __init__(self, backbone: Backbone, config: RewardModelConfig, first: int, seed: int) -> None:
        super().__init__()
        self.adapter = LoraAdapter(backbone, config.lora, seed, first)
        generator = torch.Generator().manual_seed(seed + 1)
        drawn = torch.randn(2 * backbone.hidden_size, generator=generator) / math.sqrt(2 * backbone.hidden_size + 1)
        head = torch.cat([drawn, torch.zeros(backbone.hidden_size)])
        self.head = nn.Parameter(head.to(backbone.device))
        self.surprise_head = nn.Parameter(torch.zeros(2 * COLUMNS, device=backbone.device))

    def states(self, backbone: Backbone, shared: Shared, weights: Weights | None = None) -> Tensor:
        """(C, H): what the head reads. weights: the adapter's, merged, where the caller has them."""
        weights = self.adapter.merged() if weights is None else weights
        return backbone.normed(backbone.run_reads(shared.trace, weights))

    def forward(self, backbone: Backbone, shared: Shared, batch: Batch) -> Tensor:
        """(B, R + 1), fp32: the score before a reply's first token, and after each of its tokens."""
        return self.readout(self.states(backbone, shared), shared, batch)

    def readout(self, states_CH: Tensor, shared: Shared, batch: Batch) -> Tensor:
        """As `forward`, where the caller has the states."""
        return readout(states_CH, shared.surprise_CF, batch, self.head, self.surprise_head)


SUMMED = 16.0
"""Tokens to a unit of the sum, so that its weights are learned about as fast as those of the mean."""


def readout(normed_CH: Tensor, surprise_CF: Tensor, batch: Batch, head: Tensor, surprise_head: Tensor) -> Tensor:
    """(B, R + 1), fp32: the heads' score before a reply's first token, and after each of its tokens."""
    here, mean, total = head.chunk(3)
    here_surprise, mean_surprise = surprise_head.chunk(2)
    states_CH = precise(normed_CH)
    here_C = states_CH @ here + surprise_CF @ here_surprise
    # A mean of projections is the projection of the mean, at a fraction of the memory. The same holds for the sum.
    mean_C = states_CH @ mean + surprise_CF @ mean_surprise
    total_C = states_CH @ total / SUMMED
    mean_BR, total_BR = (torch.cumsum(each[batch.token_BR] * batch.reply_mask_BR, dim=1) for each in (mean_C, total_C))
    tokens_R = torch.arange(1, mean_BR.shape[1] + 1, device=mean_BR.device)
    after_BR = here_C[batch.token_BR] + mean_BR / tokens_R + total_BR
    return torch.cat([here_C[batch.predicting_BR[:, :1]], after_BR], dim=1)


class RewardModel(nn.Module):
    gain_M: Tensor
    shift_M: Tensor

    def __init__(self, backbone: Backbone, config: RewardModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.first = backbone.first_of(config.adapted_share)
        self._backbone = (backbone,)
        self.members = nn.ModuleList(
            Member(backbone, config, self.first, seed + 1000 * index) for index in range(config.members)
        )
        self.register_buffer("gain_M", torch.ones(config.members, device=backbone.device))
        self.register_buffer("shift_M", torch.zeros(config.members, device=backbone.device))

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    @torch.no_grad()
    def shared(self, batch: Batch) -> Shared:
        backbone, trace = self.backbone, Trace(self.first, {self.first})
        hidden_CH = backbone.run(backbone.embed(batch), batch, 0, backbone.depth, trace=trace)
        return Shared(trace, surprise(reply_logprobs(backbone, hidden_CH, batch, 1.0), batch))

    def merged(self) -> list[Weights]:
        """Each member's weights, to score several batches with."""
        return [cast(Member, member).adapter.merged() for member in self.members]

    def states(self, shared: Shared, merged: Sequence[Weights] | None = None) -> list[Tensor]:
        """M times (C, H): what each member's head reads."""
        return [
            cast(Member, member).states(self.backbone, shared, weights)
            for member, weights in zip(self.members, merged or self.merged(), strict=True)
        ]

    def running_scores(self, shared: Shared, batch: Batch) -> Tensor:
        """(M, B, R + 1), standardised: before a reply's first token, and after each of its tokens."""
        raw_MBR1 = torch.stack([member(self.backbone, shared, batch) for member in self.members])
        return raw_MBR1 * self.gain_M[:, None, None] + self.shift_M[:, None, None]

    def scores(self, shared: Shared, batch: Batch, merged: Sequence[Weights] | None = None) -> Tensor:
        """(M, B): mean 0 and standard deviation 1 over the reference policy's replies, member by member."""
        return self.scores_of(self.states(shared, merged), shared, batch)

    def scores_of(self, states: Sequence[Tensor], shared: Shared, batch: Batch) -> Tensor:
        """As `scores`, where the caller has the states."""
        last_B1 = batch.reply_lengths_B[:, None]
        each = [
            cast(Member, member).readout(states_CH, shared, batch)
            for member, states_CH in zip(self.members, states, strict=True)
        ]
        raw_MB = torch.stack([scores_BR1.gather(1, last_B1).squeeze(1) for scores_BR1 in each])
        return raw_MB * self.gain_M[:, None] + self.shift_M[:, None]

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Tensor:
        """(M, B), on the CPU, for lists of token ids, in pieces of bounded size."""
        device = self.backbone.device
        batch = Batch.of(prompts, replies, device)
        result_MB = torch.empty(len(self.members), len(batch), device=device)
        merged = self.merged()

        def score(part: Part) -> None:
            result_MB[:, part.replies] = self.scores(self.shared(part.batch), part.batch, merged)

        each_part(even_parts(batch, passes(device).scoring_tokens), score)
        return result_MB.cpu()

    @torch.no_grad()
    def standardise(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> None:
        """Set gain and shift so that the reference policy's replies have mean 0 and standard deviation 1."""
        self.gain_M.fill_(1.0)
        self.shift_M.zero_()
        raw_MB = self.score(prompts, replies)
        self.gain_M.copy_(1.0 / raw_MB.std(dim=1).clamp_min(1e-4))
        self.shift_M.copy_(-raw_MB.mean(dim=1) * self.gain_M.cpu())

    def save(self, folder: Path) -> None:
        """The config comes last and whole: where it is, the weights are."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "reward_model.safetensors")
        temporary = folder / ("reward_model.json" + PART)
        temporary.write_text(self.config.model_dump_json(indent=2) + "\n")
        os.replace(temporary, folder / "reward_model.json")

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> RewardModel:
        """Raises OtherRewardModel where an older kudos made it: its numbers mean something else today."""
        config = RewardModelConfig.model_validate_json((folder / "reward_model.json").read_text())
        model = cls(backbone, config, seed=0)
        tensors = load_file(folder / "reward_model.safetensors")
        if tensors["members.0.head"].shape != cast(Member, model.members[0]).head.shape:
            raise OtherRewardModel(
                f"the reward model of {folder.parent.name} was fitted by an older kudos, whose adapters acted on "
                "prompts too: start another run"
            )
        model.load_state_dict(tensors)
        return model


@dataclass(frozen=True)
class FitStep:
    step: int
    steps: int
    loss: float
    epoch: int


@dataclass(frozen=True)
class FitEpoch:
    epoch: int  # from 1
    held_out_nll: float
    kept: bool  # it predicts the held-out votes better than any before


def fit(
    backbone: Backbone,
    examples: Sequence[VoteExample],
    config: RewardModelConfig,
    seed: int,
    on_step: Callable[[FitStep], None] = lambda step: None,
    *,
    held_out: Sequence[VoteExample] = (),
    on_epoch: Callable[[FitEpoch], None] = lambda epoch: None,
) -> tuple[RewardModel, list[VoteModel]]:
    """Fit the ensemble. Returns it with each member's model of how scores become votes.

    held_out: votes of other people, to stop by: after the first epoch that predicts them worse than the one before, the
    one before is kept.
    """
    model = RewardModel(backbone, config, seed)
    generator = torch.Generator().manual_seed(seed + 7)
    users = 1 + max((example.user for example in examples), default=0)
    votes = [
        VoteModel(users, config.label_noise, config.user_intercept_std, len(SURFACES), config.surface_intercept_std)
        for _ in range(config.members)
    ]
    surface_EF = _standardised(examples)
    elements = _elements(examples)
    unrelated = Unrelated(examples, config.unrelated_share, seed)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *(p for vote_model in votes for p in vote_model.parameters())],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
    )
    per_epoch = math.ceil(len(elements) / config.batch_size)
    steps = per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / max(1, steps // 10)) * (1.0 - s / steps)
    )
    lengths_L = torch.tensor([max(examples[i].length for i in element) for element in elements])
    step, best, kept = 0, math.inf, None
    for epoch in range(config.epochs):
        for batch in bucketed(lengths_L, config.batch_size, generator):
            index = [i for element in batch.tolist() for i in elements[element]]
            loss = _differentiate(
                model,
                votes,
                [examples[i] for i in index],
                surface_EF[index],
                [unrelated.draw(examples[i]) for i in index],
                elements=len(batch),
                total=len(examples),
                config=config,
            )
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            step += 1
            on_step(FitStep(step, steps, loss / config.members, epoch))
        if not held_out:
            continue
        missed = held_out_nll(model, votes, held_out, config)
        on_epoch(FitEpoch(epoch + 1, missed, missed < best))
        if missed >= best:
            break
        best, kept = missed, [copy.deepcopy(module.state_dict()) for module in (model, *votes)]
    if kept is not None:
        for module, state in zip((model, *votes), kept, strict=True):
            module.load_state_dict(state)
    return model, votes


@torch.no_grad()
def held_out_nll(
    model: RewardModel, votes: Sequence[VoteModel], examples: Sequence[VoteExample], config: RewardModelConfig
) -> float:
    """Nats a vote, of people whom the vote models do not know; a mean over the members, weighted as in training."""
    pairs = [example for example in examples if isinstance(example, PairExample)]
    thumbs = [example for example in examples if isinstance(example, ThumbExample)]
    prompts = [e.prompt for e in pairs for _ in range(2)] + [e.prompt for e in thumbs]
    scores_MB = model.score(prompts, [r for e in pairs for r in (e.left, e.right)] + [e.reply for e in thumbs])
    outcomes_P = torch.tensor([e.outcome for e in pairs], dtype=torch.long)
    ups_S, nobody_S = torch.tensor([e.up for e in thumbs]), torch.full((len(thumbs),), -1)
    weights = torch.tensor([e.weight for e in pairs] + [config.thumb_weight * e.weight for e in thumbs])
    total, last = 0.0, 2 * len(pairs)
    for scores_B, vote_model in zip(scores_MB, votes, strict=True):
        pair_nll = vote_model.pair_nll(scores_B[0:last:2], scores_B[1:last:2], outcomes_P)
        thumb_nll = vote_model.thumb_nll(scores_B[last:], nobody_S, ups_S)
        total += float((torch.cat([pair_nll, thumb_nll]) * weights).sum() / weights.sum().clamp_min(1e-9))
    return total / len(votes)


def _elements(examples: Sequence[VoteExample]) -> list[list[int]]:
    """What a batch is drawn from: single votes, and all pairs of a ranking together."""
    found: dict[tuple[str, int], list[int]] = {}
    for index, example in enumerate(examples):
        ranking = example.ranking if isinstance(example, PairExample) else None
        found.setdefault(("vote", index) if ranking is None else ("ranking", ranking), []).append(index)
    return list(found.values())


def _standardised(examples: Sequence[VoteExample]) -> Tensor:
    """(E, F): the surfaces of replies with thumbs, with mean 0 and standard deviation 1 over them; 0 for a pair."""
    thumbs = torch.tensor([isinstance(example, ThumbExample) for example in examples])
    surface_EF = torch.zeros(len(examples), len(SURFACES))
    if thumbs.any():
        raw = torch.tensor([example.surface for example in examples if isinstance(example, ThumbExample)])
        surface_EF[thumbs] = (raw - raw.mean(0)) / raw.std(0, unbiased=False).clamp_min(1e-3)
    return surface_EF


def bucketed(lengths_E: Tensor, size: int, generator: torch.Generator, pool: int = 8) -> list[Tensor]:
    """One epoch's batches: shuffled, yet with rows of similar length together, so that little is padding."""
    order = torch.randperm(len(lengths_E), generator=generator)
    batches: list[Tensor] = []
    for start in range(0, len(order), size * pool):
        window = order[start : start + size * pool]
        window = window[torch.argsort(lengths_E[window], stable=True)]
        batches.extend(torch.split(window, size))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _differentiate(
    model: RewardModel,
    votes: Sequence[VoteModel],
    examples: Sequence[VoteExample],
    surface_EF: Tensor,
    contrasts: Sequence[Contrast | None],
    *,
    elements: int,
    total: int,
    config: RewardModelConfig,
) -> float:
    """The members' summed loss on one batch of votes, a mean over its elements, and their gradients. Members share
    nothing that learns, so they go side by side."""
    pairs = [(i, e) for i, e in enumerate(examples) if isinstance(e, PairExample)]
    thumbs = [(i, e) for i, e in enumerate(examples) if isinstance(e, ThumbExample)]
    layout = lay_out(examples, contrasts)
    batch = Batch.of(layout.prompts, layout.replies, model.backbone.device)
    shared = model.shared(batch)
    weight_S = torch.tensor([example.weight for example in examples])
    pair_rows = torch.tensor([i for i, _ in pairs], dtype=torch.long)
    thumb_rows = torch.tensor([i for i, _ in thumbs], dtype=torch.long)
    contrast_rows = torch.tensor([i for i, contrast in enumerate(contrasts) if contrast is not None], dtype=torch.long)
    outcomes_P = torch.tensor([e.outcome for _, e in pairs], dtype=torch.long)
    users_S = torch.tensor([e.user for _, e in thumbs], dtype=torch.long)
    ups_S = torch.tensor([e.up for _, e in thumbs])

    def backward(index: int) -> float:
        vote_model = votes[index]
        scores_BR1 = cast(Member, model.members[index])(model.backbone, shared, batch)
        scores_B = scores_BR1.gather(1, batch.reply_lengths_B[:, None]).squeeze(1).cpu()  # votes are few
        left_P, right_P = scores_B[layout.pairs_P2].unbind(1)
        loss = vote_model.prior_nll() / total
        if pairs:
            nll_P = vote_model.pair_nll(left_P, right_P, outcomes_P) + config.centring * (left_P + right_P) ** 2
            loss = loss + (nll_P * weight_S[pair_rows]).sum() / elements
        if thumbs:
            nll_S = vote_model.thumb_nll(scores_B[layout.thumbs_S], users_S, ups_S, surface_EF[thumb_rows])
            loss = loss + config.thumb_weight * (nll_S * weight_S[thumb_rows]).sum() / elements
        if len(layout.contrasts_U2):
            nll_U = vote_model.unrelated_nll(*scores_B[layout.contrasts_U2].unbind(1))
            loss = loss + (nll_U * weight_S[contrast_rows]).sum() / elements
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    return sum(side_by_side([partial(backward, index) for index in range(len(votes))]))
