"""The settings of one training run: frozen, bounded, and written into the run's row and report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.gate import GateLimits
from trainer.rules import Rules


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraConfig(Frozen):
    rank: int = Field(16, ge=1, le=64)
    alpha: float = Field(32.0, gt=0)
    """The update is `alpha / rank` times B·A."""


class RewardModelConfig(Frozen):
    members: int = Field(3, ge=2, le=16)
    """Size of the ensemble; its spread is what the reward distrusts."""

    adapted_share: float = Field(1.0, gt=0, le=1)
    """Share of the layers, from the top, that carry adapters. They act on replies; prompts, and the layers below, run
    once for all members."""

    epochs: int = Field(2, ge=1)
    batch_size: int = Field(16, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    label_noise: float = Field(0.1, ge=0, lt=1)
    """Every outcome is believed to be random with this probability (Christiano et al. 2017, section 2.2.3)."""

    thumb_weight: float = Field(0.5, ge=0)
    centring: float = Field(0.01, ge=0)
    """Weight of (r_left + r_right)², which keeps rewards near zero (arXiv 2312.09244)."""

    user_intercept_std: float = Field(1.0, gt=0)
    """Prior standard deviation of how generous one user's thumbs are."""

    surface_intercept_std: float = Field(1.0, gt=0)
    """Prior standard deviation of what a reply's length, language and form do to a thumb, whatever the reply says."""

    unrelated_share: float = Field(0.5, ge=0, le=1)
    """Of the votes, each time that they are read: so many come with a reply to another prompt, against which a reply
    that people liked should win (arXiv 2409.13156). 0: none do."""

    weight_decay: float = Field(0.01, ge=0)
    lora: LoraConfig = LoraConfig()


BUILT_IN_TERMS = ("votes", "uncertainty", "repetition", "rules", "length", "coherence", "consistency")
"""Terms of the reward that `trainer.reward` makes itself."""


class ClassifierTerm(Frozen):
    name: str = Field(pattern=r"^[a-z][a-z_]*$")
    """Of the term, in plots and reports: sentiment, politeness ..."""

    model: str
    """A folder or a hub name of a transformers model for text classification."""

    label: str
    weight: float
    """Added per unit of the label's probability."""


class RewardConfig(Frozen):
    uncertainty: float = Field(0.5, ge=0)
    """λ in: mean of the ensemble − λ · variance."""

    bound: float = Field(1.5, gt=0)
    """The mean is bent so that it stays within ± this: far above what the reference says, the votes tell nothing, and
    only the reward model's mistakes are left to gain from (arXiv 2502.18770)."""

    missing_end: float = -1.0
    """The score of a reply that does not end within its limit, whatever it says (N+ details)."""

    repetition_weight: float = Field(1.0, ge=0)
    length_weight: float = 0.0
    """Added per token of the reply; negative for shorter replies."""

    coherence_weight: float = 0.0
    """Added per nat of the reference's mean logprob of a reply's tokens: what it finds fluent."""

    consistency_weight: float = 0.0
    """Added per nat by which a reply's mean logprob is larger after its own prompt than after another one. It costs one
    more pass of the reference."""

    classifiers: tuple[ClassifierTerm, ...] = ()

    rules: Rules = Rules()

    @model_validator(mode="after")
    def _names(self) -> RewardConfig:
        names = [term.name for term in self.classifiers]
        for name in names:
            if name in BUILT_IN_TERMS or names.count(name) > 1:
                raise ValueError(
                    f"another term of the reward is called {name!r}: choose another name for the classifier"
                )
        return self


class SftConfig(Frozen):
    min_corrections: int = Field(8, ge=1)
    """With fewer corrections there is no supervised stage; they still teach the reward model."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(5e-4, gt=0)


class PpoConfig(Frozen):
    algorithm: Literal["ppo", "rloo"] = "ppo"
    """rloo: no critic; a reply is compared with the others to the same prompt (arXiv 2402.14740)."""

    method: Literal["lora", "full"] = "lora"
    """full: every weight of policy and critic learns, and a whole checkpoint is published."""

    adapted_share: float = Field(0.4, gt=0, le=1)
    """Share of the layers, from the top, that carry the policy's adapters. What the layers below give does not change,
    so it is computed once a rollout and not once an epoch."""

    critic: Literal["head", "adapter"] = "head"
    """What of the critic learns: its value head alone, on the reward model's hidden states, which are computed once a
    rollout; or an adapter like the reward model's too."""

    replies_per_prompt: int = Field(1, ge=1)
    """In one iteration. rloo needs two or more."""

    iterations: int = Field(16, ge=1)
    batch_size: int = Field(96, ge=2)
    minibatches: int = Field(2, ge=1)
    epochs: int = Field(2, ge=1)
    microbatch_tokens: int | None = Field(None, ge=256)
    """Positions of attention's grid in one pass, at most: memory against speed, nothing else. Unset: 1,536 on a CPU,
    where every pass adds up the gradients of all weights, and 8,192 on a GPU."""
    response_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.7, gt=0)
    """Of the rollouts; the same as the server's default, so that training sees what users see."""

    learning_rate: float = Field(2e-3, gt=0)
    critic_learning_rate: float = Field(2e-3, gt=0)
    adam_eps: float = Field(1e-5, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    value_coefficient: float = Field(0.1, ge=0)
    kl_coefficient: float = Field(0.1, ge=0)
    kl_target_nats: float = Field(3.0, gt=0)
    """Per reply, against the reference. A little below it (`trainer.ppo.KL_SET_POINT`) the adaptive controller begins
    to raise the coefficient; further below, the coefficient falls again, never to less than at first: a policy may stay
    nearer than that."""

    kl_horizon: float = Field(100.0, gt=0)
    """Episodes over which the controller may change the coefficient by its full step. A run has few iterations: with
    thousands, the usual choice, it would end before the coefficient has moved."""

    stop_approx_kl: float = Field(0.1, gt=0)
    """The epochs of an iteration end early when the policy has moved this far from the rollout's, in nats per
    token."""

    importance_cap: float = Field(2.0, ge=1)
    sampler_gap_nats: float = Field(0.05, gt=0)
    """Mean absolute gap between the sampler's and the trainer's logprobs above which a run stops: bf16 stays below
    it."""

    checkpoint_every: int = Field(4, ge=1)
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _divisible(self) -> PpoConfig:
        unit = self.minibatches * self.replies_per_prompt
        if self.batch_size % unit:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of minibatches {self.minibatches} times "
                f"replies_per_prompt {self.replies_per_prompt}: change one of them"
            )
        if self.algorithm == "rloo" and self.replies_per_prompt < 2:
            raise ValueError("rloo compares replies to the same prompt: set replies_per_prompt to 2 or more")
        if self.method == "full" and not {"learning_rate", "critic_learning_rate"} <= self.model_fields_set:
            raise ValueError(
                'the default learning rates are for adapters: with method "full" set learning_rate and '
                "critic_learning_rate (1e-5 is a cautious start)"
            )
        return self


class EvaluationConfig(Frozen):
    prompts: int = Field(128, ge=8)
    """Prompts that are kept from PPO; at most a quarter of all."""

    replies_per_prompt: int = Field(2, ge=1)
    """Replies of each policy to each of them."""

    judge_votes: int = Field(50, ge=1)
    """Held-out votes from which on they are fitted to a second judge."""

    sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = {}
    """Evaluation sets: a name (helpful, truthful ...) and its JSONL file. They join those of the model's own folder,
    and replace them where names are the same."""

    set_replies: int = Field(4, ge=1)
    """Replies of each policy to each prompt of a set."""


class TrainingConfig(Frozen):
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs. auto: on the GPU, where there is one."""

    threads: int | None = Field(None, ge=1)
    """CPU threads; unset: torch's own choice."""

    max_tokens: int = Field(384, ge=32)
    """Of a prompt and its reply together; a longer prompt keeps its newest part."""

    min_votes: int = Field(50, ge=4)
    """A run with fewer usable votes is refused."""

    held_out_fraction: float = Field(0.25, gt=0, lt=0.5)
    """Of users and of shared prompts: what the reward model is tested on."""

    user_weight_cap: float = Field(50.0, gt=0)
    """The votes of one user weigh at most as much as this many votes."""

    vote_propensity_floor: float = Field(0.2, gt=0, le=1)
    """A vote weighs 1 / (how likely it was to be cast); no likelihood counts as less than this. 1: all weigh the
    same."""

    popular_share: float = Field(0.1, ge=0, le=1)
    """A phrase that people write into corrections, and no policy says, is learned once more than this share of all who
    vote have written it. 0: every phrase is learned at once."""

    publish: Literal["adapter", "full"] = "adapter"
    reward_model: RewardModelConfig = RewardModelConfig()
    sft: SftConfig = SftConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PpoConfig = PpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateLimits = GateLimits()

    @model_validator(mode="after")
    def _publishable(self) -> TrainingConfig:
        if self.ppo.method == "full" and self.publish != "full":
            raise ValueError('ppo.method "full" changes every weight, which no adapter holds: set publish to "full"')
        return self


class TrainerSettings(BaseSettings):
    """When the watcher wakes. From the environment: KUDOS_TRAIN_..."""

    model_config = SettingsConfigDict(env_prefix="KUDOS_TRAIN_", frozen=True, extra="ignore")

    after_votes: int = Field(200, ge=1)
    """A run starts when this many votes have come in since the last one."""

    poll_seconds: float = Field(2.0, gt=0)
    """How often it looks for new votes."""

    niceness: int = Field(10, ge=0, le=19)
    """Added to the trainer's own priority number, so that chat goes first."""

    config: str | None = None
    """A JSON file with a TrainingConfig; unset: the defaults."""
