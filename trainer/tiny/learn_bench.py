"""How much better a policy becomes with a given number of votes: the loop's learning half, without the server.

Simulated people answer what the policy of the day says, the log is the real one, and `TrainingRunner` learns from it
as `kudos train` does. What it learned is then judged by the hidden taste itself, without noise, on fresh prompts, which
nothing in training has seen.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from deploy import policies, rollout
from feedback.ids import new_id, prompt_digest
from feedback.replies import begin_comparison, begin_reply, finish_reply
from feedback.schema import Comparison, Reply, ReplyState, TargetKind, TrainingRun
from feedback.settings import Settings
from feedback.store import Store, open_store
from feedback.votes import Ballot, cast_vote
from trainer.backbone import Backbone
from trainer.config import TrainingConfig
from trainer.device import pick_device
from trainer.intervals import mean_interval, wilson
from trainer.lora import LoraAdapter
from trainer.reward_model import RewardModel
from trainer.run import TrainingRunner
from trainer.sampler import Rollout
from trainer.samplers import make_sampler
from trainer.tiny.build import MODEL_FOLDER
from trainer.tiny.crowd import Person, errands, people
from trainer.tiny.judge import judge
from trainer.tiny.raters import Prompt, Thumb, prompts, satisfies, true_preference, unbeatable
from trainer.tokens import decode, load_tokenizer, render_prompt

MAX_MODEL_LEN = 512


@dataclass(frozen=True)
class LearnConfig:
    taste: str
    seed: int
    noise: float = 0.1
    contrary: float = 0.1
    votes: int = 2000
    rounds: int = 2
    raters: int = 60
    pair_share: float = 0.7
    reward_model_only: bool = False
    judged: int = 500
    """Fresh prompts by which a policy is judged; for the reward model twice as many pairs, and six times as many where
    it alone is asked for. The taste has an opinion on under half of them."""
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class Said:
    """A prompt's answer to a person."""

    prompt_ids: list[int]
    text: str
    rollout: Rollout


class Bench:
    """One home folder, one engine, one taste."""

    def __init__(self, config: LearnConfig, home: Path, console: Console) -> None:
        self.config, self.home, self.console = config, home, console
        self.settings = Settings(home=home, database_url=None, burst_votes_per_minute=0)  # its people take no time
        self.store: Store = open_store(self.settings)
        self.tokenizer = load_tokenizer(MODEL_FOLDER)
        device = pick_device(config.training.device)
        self.backbone = Backbone.load(MODEL_FOLDER, device=device)
        self.sampler = make_sampler(
            MODEL_FOLDER, device, end_id=self.tokenizer.eos_token_id, max_model_len=MAX_MODEL_LEN
        )
        self.temperature = config.training.ppo.temperature
        self.max_tokens = config.training.ppo.response_tokens
        with self.store.write() as session:
            self.first = policies.register_base(session, MODEL_FOLDER).version
        self.rng = random.Random(f"learn:{config.taste}:{config.seed}")

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        config, serving = self.config, self.first
        rounds: list[dict[str, Any]] = []
        for number in range(1, config.rounds + 1):
            counts = self.vote(serving, number)
            training = config.training.model_copy(update={"seed": config.seed})
            runner = TrainingRunner(
                self.settings, self.store, training, MODEL_FOLDER, self.console, sampler=lambda *_, **__: self.sampler
            )
            outcome = runner.run()
            assert outcome.version is not None
            with self.store.read() as session:
                evaluation = session.get_one(TrainingRun, outcome.run_id).metrics["evaluation"]
            rounds.append(
                {
                    "votes": dict(sorted(counts.items())),
                    "accepted": outcome.accepted,
                    "refusals": outcome.refusals,
                    "sets": passed(evaluation),
                    "reward_model_accuracy": self.true_accuracy(outcome.run_id, number, 2 * config.judged),
                    "kl_nats": round(evaluation["kl_nats"], 3),
                    "judged_win_rate": round(evaluation["win_rate"], 4),
                    **self.true_wins(outcome.version, number),
                }
            )
            self.console.print(f"round {number}: {rounds[-1]}", highlight=False)
            if outcome.accepted:
                serving = outcome.version
                with self.store.write() as session:
                    rollout.start(session, serving, actor="bench", share=1.0)
                    rollout.promote(session, actor="bench")
        served = [each for each in rounds if each["accepted"]]
        return {
            "taste": config.taste,
            "noise": config.noise,
            "contrary": config.contrary,
            "seed": config.seed,
            "votes": sum(sum(each["votes"].values()) for each in rounds),
            "win_rate": served[-1]["win_rate"] if served else [0.5, 0.5, 0.5],
            "win_rate_at_best": rounds[-1]["win_rate_at_best"],
            "win_rate_decided": served[-1]["win_rate_decided"] if served else [0.5, 0.5, 0.5],
            "kl_nats": served[-1]["kl_nats"] if served else 0.0,
            "reward_model_accuracy": rounds[-1]["reward_model_accuracy"],
            "rounds": rounds,
            "seconds": round(time.monotonic() - started, 1),
        }

    def run_reward_model(self) -> dict[str, Any]:
        """The reward model alone, of as many votes, all of them on the first policy's replies."""
        started = time.monotonic()
        self.config = config = replace(self.config, rounds=1)
        counts = self.vote(self.first, 1)
        training = config.training.model_copy(update={"seed": config.seed})
        outcome = TrainingRunner(self.settings, self.store, training, MODEL_FOLDER, self.console).run(
            reward_model_only=True
        )
        return {
            "taste": config.taste,
            "noise": config.noise,
            "contrary": config.contrary,
            "seed": config.seed,
            "votes": dict(sorted(counts.items())),
            "reward_model_accuracy": self.true_accuracy(outcome.run_id, 1, 6 * config.judged),
            "held_out_accuracy": [
                round(value, 4)
                for value in (outcome.assessment.accuracy, outcome.assessment.lower, outcome.assessment.upper)
            ],
            "seconds": round(time.monotonic() - started, 1),
        }

    def weights(self, version: str) -> dict[str, torch.Tensor]:
        with self.store.read() as session:
            folder = policies.folder_of(policies.get(session, version), self.settings.policies_folder)
        if version == self.first:
            return {}
        config = self.config.training.ppo
        policy = LoraAdapter(self.backbone, config.lora, 0, self.backbone.first_of(config.adapted_share))
        policy.load_peft(folder)
        with torch.no_grad():
            return policy.merged()

    def answer(self, version: str, asked: Sequence[Prompt], seed: int) -> list[Said]:
        """One reply of this policy to each prompt."""
        self.sampler.update(self.backbone, self.weights(version))
        ids = [render_prompt(self.tokenizer, prompt.messages) for prompt in asked]
        rollouts = self.sampler.sample(ids, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)
        return [
            Said(each, decode(self.tokenizer, rolled.reply), rolled) for each, rolled in zip(ids, rollouts, strict=True)
        ]

    def vote(self, version: str, number: int) -> Counter[str]:
        """People answer until enough votes are in the log."""
        config = self.config
        wanted = config.votes // config.rounds
        crowd = people(
            config.taste,
            count=config.raters,
            seed=100 * config.seed + number,
            noise=config.noise,
            contrary=config.contrary,
            prompts_each=-(-2 * wanted // config.raters),
        )
        counts: Counter[str] = Counter()
        turns = errands(crowd)
        while (missing := wanted - counts.total()) > 0:
            chosen = [(*next(turns), self.rng.random() < config.pair_share) for _ in range(missing)]
            asked = [prompt for _, prompt, pair in chosen for _ in range(1 + pair)]
            said = iter(self.answer(version, asked, self.rng.randrange(2**31)))
            with self.store.write() as session:
                for person, prompt, pair in chosen:
                    if pair:
                        counts[self._choose(session, version, person, prompt, (next(said), next(said)))] += 1
                    else:
                        thumb = self._thumb(session, version, person, prompt, next(said))
                        counts.update([thumb.value] if thumb else [])
        return counts

    def _choose(self, session: Any, version: str, person: Person, prompt: Prompt, sides: tuple[Said, Said]) -> str:
        choice = person.rater.choose(prompt.messages, sides[0].text, sides[1].text)
        rows = [self._reply(version, person, prompt, arm) for arm in ("left", "right")]
        comparison = Comparison(
            id=new_id("cmp"),
            user_id=person.name,
            conversation_id=rows[0].conversation_id,
            left_reply_id=rows[0].id,
            right_reply_id=rows[1].id,
        )
        begin_comparison(session, comparison, *rows)
        for row, said in zip(rows, sides, strict=True):
            self._finish(session, row.id, said)
        cast_vote(
            session,
            user_id=person.name,
            target_kind=TargetKind.COMPARISON,
            target_id=comparison.id,
            ballot=Ballot(choice=choice),
        )
        return choice

    def _thumb(self, session: Any, version: str, person: Person, prompt: Prompt, said: Said) -> Thumb | None:
        thumb = person.rater.thumb(prompt.messages, said.text)
        if thumb is None:
            return None
        row = self._reply(version, person, prompt, "stable")
        begin_reply(session, row)
        self._finish(session, row.id, said)
        ballot = Ballot(thumb=thumb.value, reasons=thumb.reasons)
        cast_vote(session, user_id=person.name, target_kind=TargetKind.REPLY, target_id=row.id, ballot=ballot)
        return thumb

    def _reply(self, version: str, person: Person, prompt: Prompt, arm: str) -> Reply:
        messages = [dict(message) for message in prompt.messages]
        return Reply(
            id=new_id("chatcmpl"),
            conversation_id=new_id("conv"),
            user_id=person.name,
            messages=messages,
            prompt_digest=prompt_digest(messages),
            policy_version=version,
            arm=arm,
        )

    def _finish(self, session: Any, reply_id: str, said: Said) -> None:
        finish_reply(
            session,
            reply_id,
            state=ReplyState.COMPLETE,
            text=said.text,
            token_ids=said.rollout.reply,
            logprobs=said.rollout.logprobs,
            finish_reason="stop" if said.rollout.ended else "length",
            prompt_token_ids=said.prompt_ids,
        )

    def true_wins(self, version: str, number: int) -> dict[str, Any]:
        """Against the first policy, by the taste itself, a tie counting a half; with how often replies still fit."""
        asked = prompts(900_000 + 100 * self.config.seed + number, self.config.judged)
        new, old = self.answer(version, asked, 1), self.answer(self.first, asked, 2)
        worth = {"left": 1.0, "tie": 0.5, "right": 0.0}
        wins, best, fits, meets, right = [], [], [], [], []
        for prompt, ours, theirs in zip(asked, new, old, strict=True):
            wins.append(worth[true_preference(self.config.taste, prompt.messages, ours.text, theirs.text)])
            best.append(worth["tie" if unbeatable(self.config.taste, prompt.messages, theirs.text) else "left"])
            verdict = judge(prompt.messages, ours.text)
            fits.append(verdict.well_formed and verdict.fits)
            meets.append(satisfies(self.config.taste, verdict))
            if verdict.right is not None:
                right.append(verdict.right)
        decided = [win for win in wins if win != 0.5]
        return {
            "win_rate": [round(value, 4) for value in mean_interval(wins)],
            "win_rate_at_best": round(float(np.mean(best)), 4),  # what no policy can exceed
            "win_rate_decided": [round(value, 4) for value in mean_interval(decided)],  # where the taste prefers one
            "fits": round(float(np.mean(fits)), 4),
            "right": round(float(np.mean(right)), 4),  # of the answers that can be wrong
            "meets_taste": round(float(np.mean(meets)), 4),
            "tokens": round(float(np.mean([len(each.rollout.reply) for each in new])), 2),
        }

    def true_accuracy(self, run_id: str, number: int, pairs: int) -> list[float]:
        """How often the reward model prefers what the taste does, on fresh pairs of the first policy's replies that
        the taste does not call a tie; with an interval."""
        asked = prompts(700_000 + 100 * self.config.seed + number, pairs)
        sides = self.answer(self.first, asked, 3), self.answer(self.first, asked, 4)
        model = RewardModel.load(self.settings.runs_folder / run_id / "reward_model", self.backbone)
        scores = [
            model.score([each.prompt_ids for each in side], [each.rollout.reply for each in side]).mean(0)
            for side in sides
        ]
        agrees = []
        for prompt, left, right, gap in zip(asked, *sides, (scores[0] - scores[1]).tolist(), strict=True):
            better = true_preference(self.config.taste, prompt.messages, left.text, right.text)
            if better != "tie":
                agrees.append((gap > 0) == (better == "left"))
        low, high = wilson(sum(agrees), len(agrees))
        return [round(value, 4) for value in (sum(agrees) / max(1, len(agrees)), low, high)]


def passed(evaluation: dict[str, Any]) -> dict[str, list[float]]:
    """Of each evaluation set, the share of replies that pass: candidate, then what served."""
    return {name: [round(each["candidate"], 4), round(each["serving"], 4)] for name, each in evaluation["sets"].items()}


def learn(config: LearnConfig) -> dict[str, Any]:
    """One whole run in a fresh home folder."""
    console = Console(stderr=True)
    home = Path(tempfile.mkdtemp(prefix="kudos-learn-"))
    console.print(f"people who secretly like [bold]{config.taste}[/bold]; home {home}")
    bench = Bench(config, home, console)
    try:
        return bench.run_reward_model() if config.reward_model_only else bench.run()
    finally:
        bench.store.close()
