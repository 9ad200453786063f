"""PPO's critic: what a reply will be worth, guessed in its middle.

It starts as the reward model's first member, in the reward's units (Stiennon et al. 2020, appendix B.1). How much of it
learns is a choice: its value head alone, an adapter like the reward model's, or every weight. Where its layers learn,
it also reads prompts through them, as the member did not, and so it starts only near that.

Shapes: N packed tokens, C of them read, B replies, R tokens of the longest one (see `trainer.batches`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from trainer.backbone import Weights
from trainer.batches import Batch, Part
from trainer.config import PpoConfig
from trainer.lora import LoraAdapter
from trainer.reward_model import Member, RewardModel, readout
from trainer.trainable import FullWeights, Trainable, leaves

HEAD, SHIFT = "value.head", "value.shift"  # among a critic's weights


class Critic(nn.Module, ABC):
    surprise_head: Tensor

    def __init__(self, reward_model: RewardModel) -> None:
        super().__init__()
        member = cast(Member, reward_model.members[0])
        self.head = nn.Parameter(member.head.detach() * reward_model.gain_M[0])
        # It stays as it is: its inputs are so much larger than states that no rate suits both.
        self.register_buffer("surprise_head", member.surprise_head.detach() * reward_model.gain_M[0])
        self.shift = nn.Parameter(reward_model.shift_M[0].clone())

    @abstractmethod
    def frozen(self, lower_NH: Tensor, member_CH: Tensor) -> Tensor:
        """What no epoch changes, for the tokens that `kept` names. lower_NH: what the layers below the reward model's
        adapters give; member_CH: what the first member's head reads."""

    @abstractmethod
    def kept(self, part: Part) -> Tensor:
        """For which tokens of the whole batch `frozen` of this part has rows."""

    @abstractmethod
    def states(self, frozen: Tensor, batch: Batch, weights: Weights) -> Tensor:
        """(C, H): what the head reads."""

    def merged(self) -> Weights:
        """As they run, the head among them."""
        return {HEAD: self.head, SHIFT: self.shift}

    @contextmanager
    def merged_once(self, copies: int) -> Iterator[list[Weights]]:
        """Its weights, with the head among them, for any number of backward passes: see `trainable.leaves`."""
        with leaves(Critic.merged(self), None, copies) as heads, self._layers(copies) as layers:
            yield [head | layer for head, layer in zip(heads, layers, strict=True)]

    def _layers(self, copies: int) -> AbstractContextManager[list[dict[str, Tensor]]]:
        return nullcontext([{} for _ in range(copies)])

    def values(self, frozen: Tensor, surprise_CF: Tensor, batch: Batch, weights: Weights) -> Tensor:
        """(B, R): V_t, read where token t is predicted from. surprise_CF: see `trainer.surprise`."""
        states_CH = self.states(frozen, batch, weights)
        scores_BR1 = readout(states_CH, surprise_CF, batch, weights[HEAD], self.surprise_head)
        return scores_BR1[:, :-1] + weights[SHIFT]

    @torch.no_grad()
    def rescale(self, scale: float, shift: float) -> None:
        """V becomes scale · V + shift."""
        self.head.mul_(scale)
        self.surprise_head.mul_(scale)
        self.shift.mul_(scale).add_(shift)


class HeadCritic(Critic):
    """The reward model's own hidden states, computed once a rollout, and a head that learns."""

    def frozen(self, lower_NH: Tensor, member_CH: Tensor) -> Tensor:
        return member_CH

    def kept(self, part: Part) -> Tensor:
        return part.read

    def states(self, frozen: Tensor, batch: Batch, weights: Weights) -> Tensor:
        return frozen


class LayersCritic(Critic):
    """Layers that learn too: adapters over the frozen ones, or every weight."""

    def __init__(self, reward_model: RewardModel, weights: Trainable) -> None:
        super().__init__(reward_model)
        self._backbone = (reward_model.backbone,)  # in a tuple, so that the frozen weights are not this module's own
        self.weights = weights

    def frozen(self, lower_NH: Tensor, member_CH: Tensor) -> Tensor:
        return lower_NH

    def kept(self, part: Part) -> Tensor:
        return part.tokens

    def states(self, frozen: Tensor, batch: Batch, weights: Weights) -> Tensor:
        backbone, first = self._backbone[0], self.weights.first
        below_NH = frozen if first else backbone.embed(batch, weights)
        return backbone.normed(backbone.run(below_NH, batch, first, backbone.depth, weights), weights)

    def merged(self) -> Weights:
        return {**super().merged(), **self.weights.merged()}

    def _layers(self, copies: int) -> AbstractContextManager[list[dict[str, Tensor]]]:
        return self.weights.merged_once(copies)


def make_critic(reward_model: RewardModel, config: PpoConfig) -> Critic:
    backbone, member = reward_model.backbone, cast(Member, reward_model.members[0])
    if config.method == "full":
        return LayersCritic(reward_model, FullWeights(backbone, member.adapter.merged()))
    if config.critic == "head":
        return HeadCritic(reward_model)
    adapter = LoraAdapter(backbone, reward_model.config.lora, 0, reward_model.first)
    adapter.load_state_dict(member.adapter.state_dict())
    return LayersCritic(reward_model, adapter)
