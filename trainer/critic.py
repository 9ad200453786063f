"""PPO's critic: what a reply will be worth, guessed in its middle. Shapes as in `trainer.batches`."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.lora import LoraAdapter
from trainer.reward_model import Member, RewardModel, readout
from trainer.trainable import FullWeights, Trainable


class Critic(nn.Module):
    """The value of a reply so far. It starts as the reward model's first member, in the reward's units."""

    def __init__(self, backbone: Backbone, reward_model: RewardModel, method: str = "lora") -> None:
        super().__init__()
        member = cast(Member, reward_model.members[0])
        self.weights: Trainable
        if method == "full":
            self.weights = FullWeights(backbone, member.adapter.merged())
        else:
            self.weights = LoraAdapter(backbone, reward_model.config.lora, 0, reward_model.first)
            self.weights.load_state_dict(member.adapter.state_dict())
        self.head = nn.Parameter(member.head.detach() * reward_model.gain_M[0])
        self.shift = nn.Parameter(reward_model.shift_M[0].clone())

    def values(
        self, backbone: Backbone, lower_NH: Tensor, batch: Batch, weights: dict[str, Tensor] | None = None
    ) -> Tensor:
        """(B, R): V_t, read where token t is predicted from. lower_NH: what the frozen layers below its own give.
        weights: its merged weights, where the caller has them."""
        weights = self.weights.merged() if weights is None else weights
        below_NH = lower_NH if self.weights.first else backbone.embed(batch, weights)
        upper_CH = backbone.run(below_NH, batch, self.weights.first, backbone.depth, weights)
        return readout(backbone.normed(upper_CH, weights), batch, self.head)[:, :-1] + self.shift
