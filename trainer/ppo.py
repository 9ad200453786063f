"""PPO, or REINFORCE leave-one-out, on prompts from the log: one loop, in numbered steps.

Policy, critic and reference share one frozen backbone. What the lower layers compute for a rollout is frozen, so the
reference, the reward model and every epoch of the critic read it from one pass. RLOO has no critic: the other replies
to a prompt are its baseline.

Sources: Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020 (the critic starts from the reward model);
Huang et al. 2024, "The N+ implementation details of RLHF with PPO"; Ahmadian et al. 2024 (RLOO).
Shapes: M members, B episodes, R tokens of the longest reply, N packed tokens, H hidden (see `trainer.batches`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.advantages import gae, leave_one_out, token_rewards, whiten
from trainer.backbone import FROZEN, Backbone, Trace, Weights
from trainer.batches import Batch, Part, Row
from trainer.config import PpoConfig, RewardConfig
from trainer.critic import make_critic
from trainer.device import passes
from trainer.errors import OtherCheckpoint, SamplerMismatch
from trainer.iteration import Iteration
from trainer.logprobs import reply_logprobs, reply_logprobs_and_entropy, score_logprobs
from trainer.losses import adapt_kl_coefficient, importance_weights, policy_loss, value_loss
from trainer.reward import Composer, Facts, Reward
from trainer.reward_model import RewardModel, Shared
from trainer.sampler import Rollout, Samples
from trainer.surprise import COLUMNS, surprise
from trainer.trainable import Trainable, differentiate, size
from trainer.workers import each_part, even_parts

KL_SET_POINT = 0.9
"""Of the target: what the KL coefficient is steered for. Under such a controller a policy that is drawn further away
comes to rest beyond what is steered for, and the target is what should not be passed."""


@dataclass(frozen=True)
class Experience:
    """One rollout, appraised: everything that the updates read."""

    batch: Batch
    policy_NH: Tensor  # what the layers below the policy's own give
    critic_NH: Tensor  # what of the critic does not change, where it needs any
    surprise_NF: Tensor  # of the tokens that are read (see `trainer.surprise`)
    mask_BR: Tensor
    logprobs_BR: Tensor  # the trainer's own, of the policy that sampled
    reference_BR: Tensor
    sampler_BR: Tensor
    entropy_BR: Tensor
    values_BR: Tensor
    reward: Reward
    scores_MB: Tensor
    judge_B: Tensor | None  # what the second judge, whom nothing is trained to please, thinks of the replies

    @property
    def kl_nats_B(self) -> Tensor:
        return ((self.logprobs_BR - self.reference_BR) * self.mask_BR).sum(1)


class Update(NamedTuple):
    """What one optimizer step met."""

    clip_fraction: float
    approx_kl: float
    ratio_max: float
    critic_loss: float


class Ppo:
    """One training of one policy. `state` and `restore` carry everything that the next iteration depends on."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        policy: Trainable,
        reward_model: RewardModel,
        sampler: Samples,
        prompts: Sequence[list[int]],
        decode: Callable[[Sequence[int]], str],
        config: PpoConfig,
        reward: RewardConfig,
        seed: int,
        judge: RewardModel | None = None,
    ) -> None:
        """judge: a second opinion of every rollout, which is told and never learned from."""
        self.judge = judge
        self.backbone, self.policy, self.reward_model, self.sampler = backbone, policy, reward_model, sampler
        self.prompts, self.decode, self.config = list(prompts), decode, config
        self.composer = Composer(reward)
        self.critic = make_critic(reward_model, config) if config.algorithm == "ppo" else None
        self.generator = torch.Generator().manual_seed(seed)
        self.pass_tokens = config.microbatch_tokens or passes(backbone.device).learning_tokens
        self.kl_coefficient = config.kl_coefficient
        self.iteration = 0
        self.queue: list[int] = []
        groups = [{"params": list(policy.parameters()), "lr": config.learning_rate}]
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": config.critic_learning_rate})
        self.optimizer = torch.optim.Adam(groups, eps=config.adam_eps, fused=True)

    def step(self) -> Iteration:
        """One iteration: roll out, score, learn."""
        config = self.config

        # 1. Anneal the learning rates linearly to zero.
        remaining = 1.0 - self.iteration / config.iterations
        rates = (config.learning_rate, config.critic_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * remaining

        # 2. Fresh replies from the policy as it is now.
        started = time.perf_counter()
        with torch.no_grad():
            self.sampler.update(self.backbone, self.policy.merged())
        drawn = self._next_prompts(config.batch_size // config.replies_per_prompt)
        prompts = [self.prompts[i] for i in drawn for _ in range(config.replies_per_prompt)]
        seed = int(torch.randint(2**31, (1,), generator=self.generator))
        rollouts = self.sampler.sample(
            prompts, max_tokens=config.response_tokens, temperature=config.temperature, seed=seed
        )
        rolled_out = time.perf_counter()

        # 3. Logprobs, values, scores; the sampler must have run these very weights.
        experience = self.appraise(rollouts)
        mask_BR = experience.mask_BR
        gap = (experience.logprobs_BR - experience.sampler_BR)[mask_BR].abs().mean().item()
        if not gap <= config.sampler_gap_nats:
            raise SamplerMismatch(
                f"the sampler's logprobs differ from the trainer's by {gap:.3f} nats on average, over the bound of "
                f"{config.sampler_gap_nats}: the sampler does not run the weights that are being trained"
            )

        # 4. Rewards and advantages.
        if self.iteration == 0:
            self._calibrate_critic(experience)
        advantages_BR, returns_BR = self._advantages(experience)
        importance_BR = importance_weights(
            experience.logprobs_BR, experience.sampler_BR, mask_BR, config.importance_cap
        )
        scored = time.perf_counter()

        # 5. Epochs of minibatches, until the policy has moved far enough.
        updates: list[Update] = []
        for _ in range(config.epochs):
            order = torch.randperm(experience.batch.prompts, generator=self.generator)
            for rows in torch.split(order, experience.batch.prompts // config.minibatches):
                updates.append(self._update(experience, advantages_BR, returns_BR, importance_BR, rows))
            if updates[-1].approx_kl > config.stop_approx_kl:
                break
        updated = time.perf_counter()

        # 6. Steer the KL coefficient, and report.
        kl_nats = experience.kl_nats_B.mean().item()
        coefficient = self.kl_coefficient
        aim = KL_SET_POINT * config.kl_target_nats
        steered = adapt_kl_coefficient(coefficient, kl_nats, aim, config.batch_size, config.kl_horizon)
        self.kl_coefficient = max(steered, config.kl_coefficient)  # on the way to the target it is not to fall
        self.iteration += 1
        unexplained = (returns_BR - experience.values_BR)[mask_BR].var(unbiased=False)
        unexplained = unexplained / returns_BR[mask_BR].var(unbiased=False).clamp_min(1e-8)
        tokens = int(mask_BR.sum())
        clip_fractions, approx_kls, ratio_maxima, value_losses = zip(*updates, strict=True)
        return Iteration(
            iteration=self.iteration,
            episodes=self.iteration * config.batch_size,
            reward=experience.reward.total_B.mean().item(),
            votes_reward=experience.scores_MB.mean().item(),
            uncertainty=experience.scores_MB.std(0, unbiased=False).mean().item(),
            kl_nats=kl_nats,
            kl_coefficient=coefficient,
            entropy_nats_per_token=experience.entropy_BR[mask_BR].mean().item(),
            clip_fraction=sum(clip_fractions) / len(updates),
            approx_kl_per_token=approx_kls[-1],
            ratio_max=max(ratio_maxima),
            value_loss=sum(value_losses) / len(updates),
            explained_variance=1.0 - unexplained.item() if self.critic is not None else 0.0,
            sampler_gap_nats=gap,
            importance_mean=importance_BR[mask_BR].mean().item(),
            reply_tokens=tokens / config.batch_size,
            ended=sum(r.ended for r in rollouts) / len(rollouts),
            optimizer_steps=len(updates),
            learning_rate=config.learning_rate * remaining,
            rollout_seconds=rolled_out - started,
            score_seconds=scored - rolled_out,
            update_seconds=updated - scored,
            tokens_per_second=tokens / (updated - started),
            judge_reward=experience.judge_B.mean().item() if experience.judge_B is not None else None,
            terms={name: term.mean().item() for name, term in experience.reward.terms.items()},
        )

    @torch.no_grad()
    def appraise(self, rollouts: Sequence[Rollout]) -> Experience:
        """Score a rollout: policy, reference, critic and reward model, with one pass of the layers they share."""
        batch = self._rows(rollouts)
        mask_BR = batch.reply_mask_BR
        backbone, temperature = self.backbone, self.config.temperature
        below, first = self.policy.first, self.reward_model.first
        policy_NH, critic_NH = (
            torch.zeros(len(batch.ids_N), backbone.hidden_size, dtype=backbone.dtype, device=batch.device)
            for _ in range(2)
        )
        surprise_NF = torch.zeros(len(batch.ids_N), COLUMNS, device=batch.device)
        reference_BR, logprobs_BR, entropy_BR, values_BR = (
            torch.zeros(mask_BR.shape, device=batch.device) for _ in range(4)
        )
        scores_MB = torch.zeros(len(self.reward_model.members), len(batch), device=batch.device)
        judge_B = torch.zeros(len(batch), device=batch.device) if self.judge is not None else None
        weights = self.policy.merged()
        critic_weights = self.critic.merged() if self.critic is not None else FROZEN
        members = self.reward_model.merged()
        judges = self.judge.merged() if self.judge is not None else []

        def score(part: Part) -> None:
            piece, rows = part.batch, part.replies
            steps = piece.reply_mask_BR.shape[1]
            trace = Trace(first, {below, first})
            reference = backbone.run(backbone.embed(piece), piece, 0, backbone.depth, trace=trace)
            likely = reply_logprobs(backbone, reference, piece, 1.0)  # as the reward model was fitted to read it
            if temperature == 1.0:
                reference_BR[rows, :steps] = likely
            else:
                reference_BR[rows, :steps] = reply_logprobs(backbone, reference, piece, temperature)
            frozen = Shared(trace, surprise(likely, piece))
            surprise_NF[part.read] = frozen.surprise_CF
            policy_NH[part.tokens] = trace.inputs[below]
            policy = self._policy_states(trace.inputs[below], piece, weights)
            logprobs_BR[rows, :steps], entropy_BR[rows, :steps] = reply_logprobs_and_entropy(
                backbone, policy, piece, temperature, weights
            )
            states = self.reward_model.states(frozen, members)
            scores_MB[:, rows] = self.reward_model.scores_of(states, frozen, piece)
            if self.judge is not None and judge_B is not None:
                judge_B[rows] = self.judge.scores(frozen, piece, judges).mean(0)
            if self.critic is not None:
                kept = self.critic.frozen(trace.inputs[first], states[0])
                critic_NH[self.critic.kept(part)] = kept
                values_BR[rows, :steps] = self.critic.values(kept, frozen.surprise_CF, piece, critic_weights)

        each_part(even_parts(batch, self.pass_tokens), score)
        sampler_BR = torch.zeros(mask_BR.shape)
        for row, rollout in enumerate(rollouts):
            sampler_BR[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
        # Terms of the reward read texts, so they are put together on the CPU.
        scores_MB = scores_MB.cpu()
        replies = [r.reply for r in rollouts]
        reward = self.composer.compose(
            Facts(
                scores_MB,
                replies,
                [self.decode(reply) for reply in replies],
                [rollout.ended for rollout in rollouts],
                fluency_B=(reference_BR.sum(1) / batch.reply_lengths_B).cpu(),
                consistency_B=self._consistency(rollouts, reference_BR) if self.composer.needs_consistency else None,
            )
        )
        return Experience(
            batch,
            policy_NH,
            critic_NH,
            surprise_NF,
            mask_BR,
            logprobs_BR,
            reference_BR,
            sampler_BR.to(batch.device),
            entropy_BR,
            values_BR,
            reward,
            scores_MB,
            judge_B,
        )

    def _policy_states(self, below_NH: Tensor, batch: Batch, weights: Weights) -> Tensor:
        """(C, H): what the policy's uppermost layer gives. below_NH: what the layers below its own give."""
        backbone, first = self.backbone, self.policy.first
        below_NH = below_NH if first else backbone.embed(batch, weights)
        return backbone.run(below_NH, batch, first, backbone.depth, weights)

    def _consistency(self, rollouts: Sequence[Rollout], reference_BR: Tensor) -> Tensor:
        """(B,): by how many nats per token the reference finds a reply likelier after its own prompt than after the
        next one: an estimate of what prompt and reply say of each other (pointwise mutual information)."""
        shift = self.config.replies_per_prompt
        prompts, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
        others = prompts[shift:] + prompts[:shift]
        other_BR = score_logprobs(self.backbone, others, replies, self.config.temperature)
        lengths_B = torch.tensor([len(reply) for reply in replies])
        return (reference_BR.cpu() - other_BR).sum(1) / lengths_B

    def _rows(self, rollouts: Sequence[Rollout]) -> Batch:
        """A row for each prompt that was drawn, since minibatches are drawn from rows."""
        each = self.config.replies_per_prompt
        groups = [rollouts[start : start + each] for start in range(0, len(rollouts), each)]
        rows = [Row(group[0].prompt, [rollout.reply for rollout in group]) for group in groups]
        return Batch(rows, self.backbone.device)

    def _advantages(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """(B, R) each: advantages, and what the critic should have said."""
        config, mask_BR = self.config, experience.mask_BR
        if self.critic is None:
            rewards_B = experience.reward.total_B.to(mask_BR.device) - self.kl_coefficient * experience.kl_nats_B
            advantages_B = leave_one_out(rewards_B, config.replies_per_prompt)
            return advantages_B[:, None] * mask_BR, torch.zeros_like(experience.values_BR)
        rewards_BR = self._token_rewards(experience)
        advantages_BR, returns_BR = gae(rewards_BR, experience.values_BR, mask_BR, config.gamma, config.lam)
        return whiten(advantages_BR, mask_BR), returns_BR

    def _token_rewards(self, experience: Experience) -> Tensor:
        return token_rewards(
            experience.reward.total_B.to(experience.mask_BR.device),
            experience.logprobs_BR,
            experience.reference_BR,
            experience.mask_BR,
            self.kl_coefficient,
        )

    @torch.no_grad()
    def _calibrate_critic(self, experience: Experience) -> None:
        """Scale and shift the critic so that its values fit what the first rollout came to, by least squares.

        The reward model was fitted to whole replies; of their beginnings, on which the critic has to guess, its scores
        are far too sure. Two numbers for thousands of tokens cannot overfit.
        """
        if self.critic is None:
            return
        mask_BR = experience.mask_BR
        nothing_BR = torch.zeros_like(experience.values_BR)
        came_to_BR, _ = gae(self._token_rewards(experience), nothing_BR, mask_BR, self.config.gamma, lam=1.0)
        guessed, came_to = experience.values_BR[mask_BR], came_to_BR[mask_BR]
        off = guessed - guessed.mean()
        scale = float(((off * came_to).sum() / off.square().sum().clamp_min(1e-8)).clamp(0.0, 1.0))
        shift = float(came_to.mean() - scale * guessed.mean())
        self.critic.rescale(scale, shift)
        experience.values_BR.mul_(scale).add_(shift)

    def _update(
        self, experience: Experience, advantages_BR: Tensor, returns_BR: Tensor, importance_BR: Tensor, rows: Tensor
    ) -> Update:
        """One optimizer step on the prompts `rows`."""
        config, backbone, critic = self.config, self.backbone, self.critic
        parts = even_parts(experience.batch, self.pass_tokens, rows, size(self.policy))
        tokens = torch.stack([part.batch.reply_lengths_B.sum() for part in parts]).sum()

        def policy_part(part: Part, weights: Weights) -> tuple[float, float, float]:
            piece, replies = part.batch, part.replies
            mask = piece.reply_mask_BR
            steps = mask.shape[1]
            hidden_CH = self._policy_states(experience.policy_NH[part.tokens], piece, weights)
            found = policy_loss(
                reply_logprobs(backbone, hidden_CH, piece, config.temperature, weights),
                experience.logprobs_BR[replies, :steps],
                advantages_BR[replies, :steps],
                mask,
                clip=config.clip,
                importance_BR=importance_BR[replies, :steps],
                count=tokens,
            )
            found.loss.backward()  # type: ignore[no-untyped-call]
            return found.clip_fraction.item(), found.approx_kl.item(), found.ratio_max.item()

        def critic_part(part: Part, weights: Weights) -> float:
            assert critic is not None
            piece, replies = part.batch, part.replies
            mask = piece.reply_mask_BR
            steps = mask.shape[1]
            missed = value_loss(
                critic.values(
                    experience.critic_NH[critic.kept(part)], experience.surprise_NF[part.read], piece, weights
                ),
                experience.values_BR[replies, :steps],
                returns_BR[replies, :steps],
                mask,
                clip=config.value_clip,
                count=tokens,
            )
            (config.value_coefficient * missed).backward()  # type: ignore[no-untyped-call]
            return missed.item()

        # One after the other, each with its step: what the policy's passes and gradients take is free again before the
        # critic's.
        clip_fractions, approx_kls, ratio_maxima = zip(*differentiate(parts, self.policy, policy_part), strict=True)
        self._descend(self.policy)
        misses = []
        if critic is not None:
            misses = differentiate(parts, critic, critic_part)
            self._descend(critic)
        return Update(sum(clip_fractions), sum(approx_kls), max(ratio_maxima), sum(misses))

    def _descend(self, learner: nn.Module) -> None:
        """One step along the gradients of this learner, the only ones there are; they are dropped."""
        nn.utils.clip_grad_norm_(learner.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _next_prompts(self, count: int) -> list[int]:
        """Every prompt once in a random order, then again in another."""
        while len(self.queue) < count:
            self.queue += torch.randperm(len(self.prompts), generator=self.generator).tolist()
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken

    def state(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict() if self.critic is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "kl_coefficient": self.kl_coefficient,
            "iteration": self.iteration,
            "queue": list(self.queue),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises OtherCheckpoint where the state does not fit; this object is of no use then."""
        try:
            self.policy.load_state_dict(state["policy"])
            if self.critic is not None:
                self.critic.load_state_dict(state["critic"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise OtherCheckpoint(
                "the checkpoint is of another version of kudos or of other settings: delete checkpoint.pt in the run's "
                "folder, and PPO starts again with the reward model that is there"
            ) from error
        self.generator.set_state(state["generator"])
        self.kl_coefficient = state["kl_coefficient"]
        self.iteration = state["iteration"]
        self.queue = list(state["queue"])
