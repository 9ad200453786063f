"""One frozen rollout, twice: by the production code, in float64 and in fp32, and by an independent one in float64.

The second one shares nothing with the first but the weights and the sampled ids: a plain forward of one sequence at a
time, loops over tokens, and autograd through the formulas as the papers write them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.trainer.models import TorchSampler, make_backbone
from tests.trainer.test_ppo import make_ppo
from trainer.backbone import Backbone
from trainer.ppo import Ppo
from trainer.reward_model import Member

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Gradients are compared relative to the norm of all. In fp32 what is left is rounding."""
KL_COEFFICIENT, GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEFFICIENT, CAP = 0.3, 0.98, 0.9, 0.2, 0.2, 0.1, 2.0
TEMPERATURE = 0.9


def merged(backbone: Backbone, adapter: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + (alpha / rank) B A in float64, of an adapter's parameters by their names in it."""
    weights = {name: weight.double() for name, weight in backbone.model.named_parameters()}
    for name, a in parameters.items():
        if name.startswith("a."):
            weight = f"model.layers.{name[2:].replace('/', '.')}.weight"
            scale = adapter.config.alpha / adapter.config.rank
            weights[weight] = weights[weight] + scale * parameters["b." + name[2:]] @ a
    return weights


def doubled(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().to(torch.float64, copy=True).requires_grad_() for name, p in module.named_parameters()}


class Independent:
    """Logprobs and values of single sequences in float64: Llama's forward, written once more."""

    def __init__(self, backbone: Backbone) -> None:
        self.config = backbone.config

    def states(
        self, weights: Mapping[str, Tensor], ids: list[int], below: Mapping[str, Tensor] | None = None, first: int = 0
    ) -> Tensor:
        """(T, H), normed. below: the weights of the positions before `first`."""

        def product(x: Tensor, name: str) -> Tensor:
            if below is None:
                return x @ weights[name].T
            return torch.cat([x[:first] @ below[name].T, x[first:] @ weights[name].T])

        config = self.config
        positions = torch.arange(len(ids), dtype=torch.float32)  # rotary angles are defined in fp32
        base = config.rope_parameters["rope_theta"]
        frequencies = 1.0 / base ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
        angles = torch.outer(positions, frequencies)
        cos, sin = torch.cat([angles.cos()] * 2, 1).double(), torch.cat([angles.sin()] * 2, 1).double()

        def norm(x: Tensor, name: str) -> Tensor:
            return weights[name] * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps)

        def turned(x: Tensor) -> Tensor:
            half = config.head_dim // 2
            return x * cos + torch.cat([-x[:, half:], x[:, :half]], 1) * sin

        x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
        for index in range(config.num_hidden_layers):
            layer = f"model.layers.{index}"
            normed = norm(x, f"{layer}.input_layernorm.weight")
            q, k, v = (product(normed, f"{layer}.self_attn.{each}_proj.weight") for each in "qkv")
            heads, shared = [], config.num_attention_heads // config.num_key_value_heads
            for head in range(config.num_attention_heads):
                mine = slice(head * config.head_dim, (head + 1) * config.head_dim)
                theirs = slice(head // shared * config.head_dim, (head // shared + 1) * config.head_dim)
                scores = turned(q[:, mine]) @ turned(k[:, theirs]).T / math.sqrt(config.head_dim)
                scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -math.inf)
                heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, theirs])
            x = x + product(torch.cat(heads, 1), f"{layer}.self_attn.o_proj.weight")
            normed = norm(x, f"{layer}.post_attention_layernorm.weight")
            gate, up = (product(normed, f"{layer}.mlp.{each}_proj.weight") for each in ("gate", "up"))
            x = x + product(gate * torch.sigmoid(gate) * up, f"{layer}.mlp.down_proj.weight")
        return norm(x, "model.norm.weight")

    def logprobs(
        self, weights: Mapping[str, Tensor], prompt: list[int], reply: list[int], temperature: float = TEMPERATURE
    ) -> list[Tensor]:
        logits = self.states(weights, prompt + reply) @ weights["lm_head.weight"].T / temperature
        rows = logits[len(prompt) - 1 :]
        return [rows[t][token] - torch.log(rows[t].exp().sum()) for t, token in enumerate(reply)]

    def surprise(self, frozen: Mapping[str, Tensor], prompt: list[int], reply: list[int]) -> Tensor:
        """(R, 2): four units a nat, at temperature 1, and no less than −12 nats."""
        logprobs = [4.0 * nats.clamp(min=-12.0) for nats in self.logprobs(frozen, prompt, reply, 1.0)]
        return torch.stack([torch.stack([each, min(logprobs[: t + 1])]) for t, each in enumerate(logprobs)])

    def values(
        self,
        weights: Mapping[str, Tensor],
        heads: tuple[Tensor, Tensor, Tensor],
        prompt: list[int],
        reply: list[int],
        surprise: Tensor,
        *,
        frozen: Mapping[str, Tensor] | None,
    ) -> list[Tensor]:
        """heads: of the states, of the columns of `surprise`, which are 0 for the prompt, and a shift. frozen: by which
        the prompt is read, but for its last token; None: by `weights`, as all else."""
        head, surprise_head, shift = heads
        states = self.states(weights, prompt + reply, frozen, len(prompt) - 1)
        columns = torch.cat([torch.zeros(len(prompt), 2, dtype=torch.float64), surprise])
        here, mean, total = head.chunk(3)
        here_too, mean_too = surprise_head.chunk(2)
        found = []
        for t in range(len(reply)):
            value = states[len(prompt) + t - 1] @ here + columns[len(prompt) + t - 1] @ here_too + shift
            if t:
                mine = slice(len(prompt), len(prompt) + t)
                value = value + states[mine].mean(0) @ mean + columns[mine].mean(0) @ mean_too
                value = value + states[mine].sum(0) @ total / 16
            found.append(value)
        return found


def perturbed(ppo: Ppo, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ppo.policy.parameters():
            parameter.add_(0.04 * torch.randn(parameter.shape, generator=generator))


class Frozen:
    """A loop with a rollout of a policy that has since moved, so that ratios differ from one and some are clipped."""

    def __init__(self, backbone: Backbone, **changes: Any) -> None:
        self.ppo = make_ppo(
            backbone,
            sampler=TorchSampler(),
            kl_coefficient=KL_COEFFICIENT,
            gamma=GAMMA,
            lam=LAMBDA,
            value_coefficient=VALUE_COEFFICIENT,
            temperature=TEMPERATURE,
            minibatches=1,
            max_grad_norm=1e9,
            **changes,
        )
        ppo = self.ppo
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for member in ppo.reward_model.members:
                for parameter in member.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.ppo = ppo = make_ppo_with(ppo)
        perturbed(ppo, 1)
        with torch.no_grad():
            ppo.sampler.update(backbone, ppo.policy.merged())
        self.rollouts = ppo.sampler.sample(ppo.prompts, max_tokens=6, temperature=TEMPERATURE, seed=5)
        self.old_policy = doubled(ppo.policy)
        self.experience = ppo.appraise(self.rollouts)
        self.experience.sampler_BR[:] = self.experience.logprobs_BR - 0.3 * torch.randn(
            self.experience.logprobs_BR.shape, generator=generator
        )
        self.advantages_BR, self.returns_BR = ppo._advantages(self.experience)
        perturbed(ppo, 2)
        if ppo.critic is not None:
            with torch.no_grad():
                for parameter in ppo.critic.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def make_ppo_with(ppo: Ppo) -> Ppo:
    """Once more, so that the critic starts from the members as they are now."""
    return Ppo(
        backbone=ppo.backbone,
        policy=ppo.policy,
        reward_model=ppo.reward_model,
        sampler=ppo.sampler,
        prompts=ppo.prompts,
        decode=ppo.decode,
        config=ppo.config,
        reward=ppo.composer.config,
        seed=3,
    )


@pytest.fixture(params=EXACT, ids=str)
def precision(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(default)


@pytest.mark.parametrize(
    "changes",
    [{}, {"critic": "head"}, {"adapted_share": 0.5, "critic": "head"}],
    ids=["adapters", "value head", "upper layers and value head"],
)
def test_advantages_losses_and_gradients_are_those_of_float64(precision: torch.dtype, changes: dict[str, Any]) -> None:
    exact, backbone = EXACT[precision], make_backbone(num_hidden_layers=2)
    backbone.model.to(precision)
    frozen = Frozen(backbone, **changes)
    ppo, experience = frozen.ppo, frozen.experience
    assert ppo.critic is not None
    policy, critic = doubled(ppo.policy), doubled(ppo.critic)
    importance_BR = torch.exp(experience.logprobs_BR - experience.sampler_BR).clamp(max=CAP)
    gradients: dict[str, torch.Tensor | None] = {name: None for name, _ in ppo.policy.named_parameters()}
    critic_gradients: dict[str, torch.Tensor | None] = {name: None for name, _ in ppo.critic.named_parameters()}

    def keep(*_: Any) -> None:
        """They are dropped once their step is taken."""
        for learner, found in ((ppo.policy, gradients), (ppo.critic, critic_gradients)):
            assert learner is not None
            found.update({name: p.grad for name, p in learner.named_parameters() if p.grad is not None})

    ppo.optimizer.register_step_pre_hook(keep)
    clip_fraction, approx_kl, ratio_max, critic_loss = ppo._update(
        experience, frozen.advantages_BR, frozen.returns_BR, importance_BR, torch.arange(len(ppo.prompts))
    )

    # From here on: float64, one sequence and one token at a time.
    member = cast(Member, ppo.reward_model.members[0])
    independent = Independent(backbone)
    reference = {name: weight.double() for name, weight in backbone.model.named_parameters()}
    old_weights = merged(backbone, ppo.policy, frozen.old_policy)
    new_weights = merged(backbone, ppo.policy, policy)
    start = merged(backbone, member.adapter, doubled(member.adapter))
    gain, shift = ppo.reward_model.gain_M[0].double(), ppo.reward_model.shift_M[0].double()
    if any(name.startswith("weights.") for name in critic):
        moved = {name.removeprefix("weights."): p for name, p in critic.items() if name.startswith("weights.")}
        critic_weights, read_by = merged(backbone, member.adapter, moved), None
    else:
        critic_weights, read_by = start, reference
    advantages: list[float] = []
    policy_terms: list[tuple[Tensor, float]] = []
    value_terms: list[tuple[Tensor, float, float]] = []
    for row, rollout in enumerate(frozen.rollouts):
        prompt, reply = rollout.prompt, rollout.reply
        with torch.no_grad():
            old = independent.logprobs(old_weights, prompt, reply)
            ref = independent.logprobs(reference, prompt, reply)
            surprise = independent.surprise(reference, prompt, reply)
            heads = member.head.double() * gain, member.surprise_head.double() * gain, shift
            old_values = independent.values(start, heads, prompt, reply, surprise, frozen=read_by)
        score = experience.reward.total_B[row].double().item()
        rewards = [-KL_COEFFICIENT * (old[t] - ref[t]).item() for t in range(len(reply))]
        rewards[-1] += score
        running, each = 0.0, [0.0] * len(reply)
        for t in reversed(range(len(reply))):
            following = old_values[t + 1].item() if t + 1 < len(reply) else 0.0
            running = rewards[t] + GAMMA * following - old_values[t].item() + GAMMA * LAMBDA * running
            each[t] = running
        advantages += each
        new = independent.logprobs(new_weights, prompt, reply)
        heads = critic["head"], member.surprise_head.double() * gain, critic["shift"]
        values = independent.values(critic_weights, heads, prompt, reply, surprise, frozen=read_by)
        for t in range(len(reply)):
            importance = min(float(torch.exp(old[t] - experience.sampler_BR[row, t].double())), CAP)
            policy_terms.append((torch.exp(new[t] - old[t]), importance))
            value_terms.append((values[t], old_values[t].item(), each[t] + old_values[t].item()))
    raw = torch.tensor(advantages, dtype=torch.float64)
    whitened = (raw - raw.mean()) / torch.sqrt(raw.var(unbiased=False) + 1e-8)
    losses, clipped = [], 0
    for advantage, (ratio, importance) in zip(whitened.tolist(), policy_terms, strict=True):
        plain, cut = -advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)
        clipped += bool(cut > plain)
        losses.append(importance * torch.maximum(plain, cut))
    value_losses = [
        0.5 * torch.maximum((v - target) ** 2, (v.clamp(was - VALUE_CLIP, was + VALUE_CLIP) - target) ** 2)
        for v, was, target in value_terms
    ]
    value_loss = torch.stack(value_losses).mean()
    (torch.stack(losses).mean() + VALUE_COEFFICIENT * value_loss).backward()  # type: ignore[no-untyped-call]

    mask = experience.mask_BR
    assert 0.05 < clip_fraction == pytest.approx(clipped / len(losses))
    assert ratio_max > 1.2
    assert approx_kl > 0
    torch.testing.assert_close(frozen.advantages_BR[mask].double(), whitened, rtol=0, atol=exact)
    targets = torch.tensor([target for _, _, target in value_terms], dtype=torch.float64)
    torch.testing.assert_close(frozen.returns_BR[mask].double(), targets, rtol=0, atol=exact)
    assert critic_loss == pytest.approx(value_loss.item(), abs=exact)
    for found, expected in ((gradients, policy), (critic_gradients, critic)):
        assert found.keys() == expected.keys()
        size = torch.stack([p.grad.norm() for p in expected.values() if p.grad is not None]).norm()
        for name, gradient in found.items():
            assert gradient is not None
            right = expected[name].grad
            assert right is not None
            assert (gradient.double() - right).norm() <= exact * size, name
