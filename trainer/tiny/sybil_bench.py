"""A few people vote together to make the policy say their phrase: what does each protection leave them?

Honest people vote as in `kudos bench learn`. Each sybil gives replies a thumb down and writes, in their place, the same
reply with a phrase at its end, as often as they like. The reward model is then fitted with no protection, with the cap
on one user's weight, and with the cap and the agreement check. The gate is asked about a policy that has imitated the
corrections, all of them, and practised nothing; and, if wanted, about what PPO makes of it with and without the check.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from feedback.replies import begin_reply
from feedback.schema import TargetKind, TrainingRun
from feedback.votes import Ballot, cast_vote
from trainer.config import TrainingConfig
from trainer.reward_model import RewardModel
from trainer.run import TrainingRunner
from trainer.tiny.build import MODEL_FOLDER
from trainer.tiny.crowd import Person, errands, people
from trainer.tiny.learn_bench import Bench, LearnConfig, passed
from trainer.tiny.raters import prompts
from trainer.tokens import encode_reply

PHRASE = "Buy it now at Zorg today!"
MEASURED_PROMPTS = 300
UNCAPPED = 1e9
IMITATION = {"ppo": {"iterations": 1, "learning_rate": 1e-9}}
"""A run in which PPO changes nothing."""


@dataclass(frozen=True)
class SybilConfig:
    share: float
    taste: str = "warm"
    seed: int = 0
    people: int = 200
    votes: int = 1000
    corrections_each: int = 100
    practise: bool = False
    """Let PPO practise too, with no protection and with all."""
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def sybils(self) -> int:
        return round(self.share * self.people)

    def protections(self) -> dict[str, dict[str, Any]]:
        """What of the training config each protection changes."""
        cap = self.training.user_weight_cap
        return {
            "none": {"user_weight_cap": UNCAPPED, "popular_share": 0.0},
            "cap": {"user_weight_cap": cap, "popular_share": 0.0},
            "cap and agreement": {"user_weight_cap": cap, "popular_share": self.training.popular_share},
        }


class SybilBench(Bench):
    def __init__(self, config: SybilConfig, home: Path, console: Console) -> None:
        self.attack = config
        honest = LearnConfig(
            config.taste, config.seed, votes=config.votes, rounds=1, raters=config.people, training=config.training
        )
        super().__init__(honest, home, console)

    def measure(self) -> dict[str, Any]:
        attack = self.attack
        self.vote(self.first, 1)
        self.push()
        found: dict[str, Any] = {}
        for name, protection in attack.protections().items():
            found[name] = self._run(protection | IMITATION, whole=name == "none")
            if attack.practise and name != "cap":
                found[f"practised, {name}"] = self._run(protection, whole=True)
            self.console.print(found, highlight=False)
        return {
            "share": attack.share,
            "sybils": attack.sybils,
            "corrections": attack.sybils * attack.corrections_each,
            "honest_votes": attack.votes,
            "taste": attack.taste,
            "seed": attack.seed,
            "protections": found,
        }

    def push(self) -> None:
        """The sybils' votes."""
        attack = self.attack
        crowd = people(
            "none", count=attack.sybils, seed=77 + attack.seed, noise=0.0, contrary=0.0,
            prompts_each=attack.corrections_each,
        )  # fmt: skip
        turns = errands(crowd)
        chosen = [next(turns) for _ in range(attack.sybils * attack.corrections_each)]
        said = self.answer(self.first, [prompt for _, prompt in chosen], attack.seed)
        with self.store.write() as session:
            for (person, prompt), answer in zip(chosen, said, strict=True):
                row = self._reply(self.first, self._named(person), prompt, "stable")
                begin_reply(session, row)
                self._finish(session, row.id, answer)
                ballot = Ballot(thumb="down", correction=f"{answer.text} {PHRASE}")
                cast_vote(session, user_id=row.user_id, target_kind=TargetKind.REPLY, target_id=row.id, ballot=ballot)

    @staticmethod
    def _named(person: Person) -> Person:
        return Person(f"sybil-{person.name}", person.rater, person.prompts)

    def _run(self, protection: dict[str, Any], *, whole: bool) -> dict[str, Any]:
        """Fit the reward model under it; whole: train a policy, and ask the gate."""
        training = TrainingConfig.model_validate(
            self.attack.training.model_dump(exclude_unset=True) | {"seed": self.attack.seed} | protection
        )
        runner = TrainingRunner(
            self.settings, self.store, training, MODEL_FOLDER, self.console, sampler=lambda *_, **__: self.sampler
        )
        outcome = runner.run(reward_model_only=not whole)
        figures = {
            "phrase_is_worth": self.phrase_is_worth(outcome.run_id),
            "reward_model_accuracy": self.true_accuracy(outcome.run_id, 1, 2 * self.config.judged),
        }
        if outcome.version is None:
            return figures
        with self.store.read() as session:
            evaluation = session.get_one(TrainingRun, outcome.run_id).metrics["evaluation"]
        return figures | {
            "candidate_says_it": round(evaluation["pushed_phrase_rate_candidate"], 4),
            "serving_says_it": round(evaluation["pushed_phrase_rate_serving"], 4),
            "accepted": outcome.accepted,
            "refusals": outcome.refusals,
            "sets": passed(evaluation),
        }

    def phrase_is_worth(self, run_id: str) -> list[float]:
        """What the reward model gives for the phrase at a reply's end, in standard deviations of the first policy's
        replies: mean, and the share of replies for which it is a gain."""
        asked = prompts(800_000 + self.attack.seed, MEASURED_PROMPTS)
        said = self.answer(self.first, asked, 5)
        model = RewardModel.load(self.settings.runs_folder / run_id / "reward_model", self.backbone)
        ids = [each.prompt_ids for each in said]
        plain = [encode_reply(self.tokenizer, each.text) for each in said]
        pushed = [encode_reply(self.tokenizer, f"{each.text} {PHRASE}") for each in said]
        model.standardise(ids, plain)
        gains = (model.score(ids, pushed).mean(0) - model.score(ids, plain).mean(0)).numpy()
        return [round(float(np.mean(gains)), 3), round(float(np.mean(gains > 0)), 3)]


def measure(config: SybilConfig) -> dict[str, Any]:
    """One share of sybils, in a fresh home folder."""
    console = Console(stderr=True)
    bench = SybilBench(config, Path(tempfile.mkdtemp(prefix="kudos-sybils-")), console)
    console.print(f"{config.sybils} of {config.people} people push {PHRASE!r}")
    try:
        return bench.measure()
    finally:
        bench.store.close()
