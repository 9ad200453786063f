"""The gold reward against KL, of kudos' PPO and of TRL's, with one reward model (Gao et al. 2023, arXiv 2210.10760).

Gold is what people really like, which only a simulated taste can tell: the true win rate over the first policy, on
fresh prompts. Both trainings start from kudos-tiny, practise on the same prompts, and are paid by the same composed
reward; both are measured by the same code after every few iterations. TRL trains every weight, with a critic of its own
and a fixed KL coefficient; kudos trains as it does by default.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from feedback.samples import collect
from trainer import plots
from trainer.backbone import Backbone
from trainer.config import TrainingConfig
from trainer.examples import Examples, to_examples
from trainer.intervals import mean_interval
from trainer.logprobs import score_logprobs
from trainer.lora import LoraAdapter
from trainer.ppo import Ppo
from trainer.reward import Composer, Facts
from trainer.reward_model import RewardModel, fit
from trainer.sampler import Rollout
from trainer.tiny.build import MODEL_FOLDER
from trainer.tiny.judge import judge
from trainer.tiny.learn_bench import Bench, LearnConfig
from trainer.tiny.raters import prompts, true_preference
from trainer.tokens import decode, render_prompt

JUDGED_PROMPTS = 400
LONGEST_PROMPT = 96
"""Tokens of a prompt to practise on: TRL pads all of them to the longest."""
WORTH = {"left": 1.0, "tie": 0.5, "right": 0.0}


@dataclass(frozen=True)
class GoldConfig:
    taste: str
    seed: int
    votes: int = 1000
    every: int = 2
    """Iterations from one measurement to the next."""
    trl_learning_rate: float = 1e-4
    training: TrainingConfig = field(default_factory=TrainingConfig)


class GoldBench(Bench):
    def __init__(self, config: GoldConfig, home: Path, console: Console) -> None:
        self.gold, self.training = config, config.training
        super().__init__(
            LearnConfig(config.taste, config.seed, 0.1, 0.1, config.votes, rounds=1, training=config.training),
            home,
            console,
        )
        self.asked = prompts(600_000 + config.seed, JUDGED_PROMPTS)
        self.asked_ids = [render_prompt(self.tokenizer, prompt.messages) for prompt in self.asked]
        self.composer = Composer(config.training.reward)

    def measure(self, trl: Path | None) -> dict[str, Any]:
        self.vote(self.first, 1)
        examples, model = self._reward_model()
        first = self._sampled({}, seed=1)
        self.before = [decode(self.tokenizer, rolled.reply) for rolled in first]
        line: dict[str, Any] = {
            "taste": self.gold.taste,
            "seed": self.gold.seed,
            "votes": self.gold.votes,
            "kl_coefficient": self.training.ppo.kl_coefficient,
            "kudos": list(self._ours(examples, model)),
        }
        return line | ({"trl": list(self._theirs(examples, model, trl))} if trl is not None else {})

    def _reward_model(self) -> tuple[Examples, RewardModel]:
        with self.store.read() as session:
            samples = collect(session, consent_default=True, held_out_fraction=self.training.held_out_fraction)
        seed = self.gold.seed
        examples = to_examples(samples, self.tokenizer, max_tokens=self.training.max_tokens, kept_prompts=0, seed=seed)
        examples = replace(examples, prompts=[ids for ids in examples.prompts if len(ids) <= LONGEST_PROMPT])
        model, _ = fit(self.backbone, examples.train, self.training.reward_model, seed, held_out=examples.held_out)
        asked = (examples.prompts * 4)[:256]
        self.sampler.update(self.backbone, {})
        reference = self.sampler.sample(asked, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)
        model.standardise([r.prompt for r in reference], [r.reply for r in reference])
        return examples, model

    def _sampled(self, weights: dict[str, Tensor], seed: int) -> list[Rollout]:
        self.sampler.update(self.backbone, weights)
        return self.sampler.sample(self.asked_ids, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)

    def _measured(self, episodes: int, weights: dict[str, Tensor], model: RewardModel) -> dict[str, Any]:
        """KL in nats per reply; gold: the true win rate over the first policy, with its interval; proxy: what the
        reward model believes, in standard deviations of the first policy; fits: the share of replies to the point."""
        rollouts = self._sampled(weights, seed=2)
        texts = [decode(self.tokenizer, rolled.reply) for rolled in rollouts]
        asked, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
        here, there = (
            score_logprobs(self.backbone, asked, replies, self.temperature, each).sum(1) for each in (weights, {})
        )
        rows = list(zip(self.asked, texts, self.before, strict=True))
        wins = [WORTH[true_preference(self.gold.taste, each.messages, new, old)] for each, new, old in rows]
        verdicts = [judge(each.messages, new) for each, new, _ in rows]
        right = [verdict.right for verdict in verdicts if verdict.right is not None]
        point = {
            "episodes": episodes,
            "kl_nats": round(float((here - there).mean()), 3),
            "gold": [round(value, 4) for value in mean_interval(wins)],
            "proxy": round(float(model.score(asked, replies).mean()), 3),
            "fits": round(float(np.mean([verdict.well_formed and verdict.fits for verdict in verdicts])), 4),
            "right": round(float(np.mean(right)), 4),  # of the answers that can be wrong
            "tokens": round(float(np.mean([len(reply) for reply in replies])), 2),
        }
        self.console.print(point, highlight=False)
        return point

    def _ours(self, examples: Examples, model: RewardModel) -> Iterator[dict[str, Any]]:
        config = self.training.ppo
        policy = LoraAdapter(self.backbone, config.lora, self.gold.seed, self.backbone.first_of(config.adapted_share))
        ppo = Ppo(
            backbone=self.backbone,
            policy=policy,
            reward_model=model,
            sampler=self.sampler,
            prompts=examples.prompts,
            decode=lambda ids: decode(self.tokenizer, ids),
            config=config,
            reward=self.training.reward,
            seed=self.gold.seed,
        )
        yield self._measured(0, {}, model)
        for iteration in range(1, config.iterations + 1):
            ppo.step()
            if iteration % self.gold.every == 0:
                with torch.no_grad():
                    weights = policy.merged()
                yield self._measured(iteration * config.batch_size, weights, model)

    def _theirs(self, examples: Examples, model: RewardModel, python: Path) -> Iterator[dict[str, Any]]:
        """Raises RuntimeError where TRL ends before its last iteration."""
        config = self.training.ppo
        told = {
            "model": str(MODEL_FOLDER),
            "prompts": examples.prompts,
            "seed": self.gold.seed,
            "batch": config.batch_size,
            "minibatches": config.minibatches,
            "epochs": config.epochs,
            "episodes": config.iterations * config.batch_size,
            "response_tokens": config.response_tokens,
            "temperature": config.temperature,
            "kl_coefficient": config.kl_coefficient,
            "learning_rate": self.gold.trl_learning_rate,
            "every": self.gold.every,
        }
        command = [str(python), str(Path(__file__).with_name("trl_learner.py"))]
        yield self._measured(0, {}, model)
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(  # noqa: S603 - our own
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                question = json.loads(line)
                answer: list[float] = []
                if "policy" in question:
                    trained = Backbone.load(Path(question["policy"])).weights()
                    weights = {name: weight.detach().to(self.backbone.dtype) for name, weight in trained.items()}
                    yield self._measured(question["episodes"], weights, model)
                else:
                    answer = self._paid(model, question["prompts"], question["replies"])
                process.stdin.write(json.dumps(answer) + "\n")
                process.stdin.flush()
            if process.wait() != 0:
                said.seek(0)
                raise RuntimeError(f"TRL ended with status {process.returncode}:\n{said.read()[-2000:]}")

    def _paid(self, model: RewardModel, asked: list[list[int]], replies: list[list[int]]) -> list[float]:
        """The composed reward of replies, as `trainer.ppo` computes it."""
        fluency_BR = score_logprobs(self.backbone, asked, replies, self.temperature)
        lengths_B = torch.tensor([len(reply) for reply in replies])
        reward = self.composer.compose(
            Facts(
                model.score(asked, replies),
                replies,
                [decode(self.tokenizer, reply) for reply in replies],
                [reply[-1] == self.tokenizer.eos_token_id for reply in replies],
                fluency_B=fluency_BR.sum(1) / lengths_B,
            )
        )
        return [float(value) for value in reward.total_B]


def measure(config: GoldConfig, trl: Path | None) -> dict[str, Any]:
    """One taste and seed, in a fresh home folder."""
    console = Console(stderr=True)
    bench = GoldBench(config, Path(tempfile.mkdtemp(prefix="kudos-gold-")), console)
    try:
        return bench.measure(trl)
    finally:
        bench.store.close()


def plot(lines: Iterable[dict[str, Any]]) -> str:
    """Every line's curves, as one SVG: one colour a trainer, a line for each taste and seed."""
    curves = [
        (name, line["taste"], line["seed"], line[name]) for line in lines for name in ("kudos", "trl") if name in line
    ]
    colours = dict(zip(("kudos", "trl"), plots.COLOURS, strict=False))
    marks = dict(zip(sorted({taste for _, taste, _, _ in curves}), cycle("os^D"), strict=False))

    def draw(axes: Any) -> None:
        labelled: set[tuple[str, str]] = set()
        for name, taste, _, points in curves:
            label = f"{'kudos' if name == 'kudos' else 'TRL 1.12'}, {taste}" if (name, taste) not in labelled else None
            labelled.add((name, taste))
            kl = [point["kl_nats"] for point in points]
            axes.plot(
                kl, [point["gold"][0] for point in points], color=colours[name], marker=marks[taste], markersize=3.5,
                linewidth=1.3, label=label,
            )  # fmt: skip
            bounds = ([point["gold"][side] for point in points] for side in (1, 2))
            axes.vlines(kl, *bounds, color=colours[name], alpha=0.35, linewidth=1)
        axes.axhline(0.5, color=plots.MUTED, linewidth=1, linestyle="--")
        axes.set_xlabel("KL to the first policy, nats per reply")
        axes.set_ylabel("true win rate over the first policy")
        axes.legend(frameon=False, loc="lower right")

    return plots.svg(draw, width=6.4, height=4.0)


def read(path: Path) -> list[dict[str, Any]]:
    found: Sequence[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    return [json.loads(line) for line in found]
