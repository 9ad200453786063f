"""One training run, from the log to a published candidate.

samples → reward model → corrections → PPO → evaluation → gate → publication. Each stage leaves what the next one needs
in the run's folder, so a run that was killed goes on from its last checkpoint. The lease lets only one of two trainers
publish.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from deploy.errors import LeaseLost
from deploy.gate import judge
from feedback.errors import StorageError
from feedback.ids import new_id
from feedback.run_files import ERROR
from feedback.schema import PolicyKind, RunState
from feedback.settings import Settings
from feedback.store import Store
from trainer.assessment import Assessment, assess
from trainer.backbone import Backbone
from trainer.checkpoint import RunFolder
from trainer.config import TrainingConfig
from trainer.device import pick_device
from trainer.errors import LostLease, TooFewVotes
from trainer.evaluation import Asked, Judges, evaluate
from trainer.evaluation_sets import load_sets
from trainer.examples import Examples, to_examples
from trainer.held_lease import HeldLease, held_lease
from trainer.iteration import Iteration, as_row
from trainer.lora import LoraAdapter
from trainer.memory import set_up_memory
from trainer.ppo import Ppo
from trainer.progress import RunProgress
from trainer.publication import PROBE_QUESTIONS, PROBE_REPLIES, publish_policy
from trainer.records import RunRecords
from trainer.report import explain, write_report
from trainer.reward_model import RewardModel, fit
from trainer.sampler import Rollout, Samples
from trainer.samplers import make_sampler
from trainer.sft import SftEpoch, imitate
from trainer.tokens import decode, load_tokenizer, readable_prompt, render_prompt
from trainer.trainable import FullWeights, Trainable


@dataclass(frozen=True)
class Outcome:
    run_id: str
    version: str | None
    accepted: bool
    refusals: list[str]
    report: Path | None
    assessment: Assessment


class TrainingRunner:
    """Holds what the stages share. `run` is the whole story."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        config: TrainingConfig,
        model_folder: Path,
        console: Console,
        *,
        sampler: Callable[..., Samples] | None = None,
    ) -> None:
        """sampler: makes what answers in PPO and evaluation; unset: vLLM in this process, else transformers."""
        self.settings, self.store, self.config, self.console = settings, store, config, console
        self.model_folder = model_folder
        self.device = pick_device(config.device)
        self._make_sampler = sampler or make_sampler
        set_up_memory()
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    def run(self, resume: str | None = None, *, reward_model_only: bool = False) -> Outcome:
        run_id = resume or new_id("run")
        records = RunRecords(self.settings, self.store, run_id)
        with held_lease(self.store) as lease:
            records.open(self.config)
            folder = RunFolder(self.settings.runs_folder / run_id)
            folder.save_json("config", self.config.model_dump(mode="json"))
            try:
                with RunProgress(self.store, run_id, self.console) as progress:
                    outcome = self._stages(records, folder, progress, lease, reward_model_only)
            except (LostLease, LeaseLost):
                raise  # the row, and what it says, is now whoever's goes on with the run
            except BaseException as error:
                # A database that was away comes back: such a run is taken up again, once.
                interrupted = isinstance(error, KeyboardInterrupt | SystemExit | StorageError)
                state = RunState.INTERRUPTED if interrupted else RunState.FAILED
                if not records.close(state, error=_one_line(error)):
                    folder.forget_words()  # those that it wrote after the erasure
                elif not interrupted:
                    (folder.path / ERROR).write_text(traceback.format_exc())
                raise
            records.close(RunState.SUCCEEDED, policy_version=outcome.version)
        return outcome

    def _stages(
        self, records: RunRecords, folder: RunFolder, progress: RunProgress, lease: HeldLease, reward_model_only: bool
    ) -> Outcome:
        config, run_id = self.config, records.run_id

        # 1. Where training starts: the policy that serves when it begins, whatever serves when it goes on.
        progress.stage("starting", "loading the serving policy")
        start = folder.load_json("start")
        serving = records.serving(self.model_folder, start["version"] if start else None)
        reward_model_only |= bool(start and start["reward_model_only"])
        folder.save_json("start", {"version": serving.policy.version, "reward_model_only": reward_model_only})
        sets = load_sets(self.model_folder, config.evaluation.sets)  # now, so that a broken file costs no training
        tokenizer = load_tokenizer(serving.base_folder)
        backbone = Backbone.load(serving.base_folder, device=self.device)
        adapter = LoraAdapter(backbone, config.ppo.lora, config.seed, backbone.first_of(config.ppo.adapted_share))
        if serving.adapter_folder is not None:
            adapter.load_peft(serving.adapter_folder)
        with torch.no_grad():
            serving_weights = adapter.merged() if serving.adapter_folder is not None else {}
        policy = FullWeights(backbone, serving_weights) if config.ppo.method == "full" else adapter

        # 2. What people said, as token ids.
        progress.stage("samples", "reading votes")
        examples = self._examples(records, folder, tokenizer, backbone)
        left_out = records.left_out()
        read = f"{len(examples.train)} votes to learn from, {len(examples.held_out)} held out"
        progress.step(1.0, "; ".join(filter(None, (read, left_out))), log=True)

        # 3. What people like.
        progress.stage("reward model", f"an ensemble of {config.reward_model.members}")
        reward_model, assessment = self._reward_model(records, folder, backbone, examples, progress)
        progress.step(
            1.0,
            f"held-out accuracy {assessment.accuracy:.3f} [{assessment.lower:.3f}, {assessment.upper:.3f}] "
            f"on {assessment.pairs} pairs and {assessment.thumbs} thumbs",
            log=True,
            metrics={"reward_model": asdict(assessment)},
        )
        if reward_model_only:
            folder.forget_examples()
            return Outcome(run_id, None, False, [], None, assessment)
        lease.check()

        judges = Judges(reward_model, self._second_judge(folder, backbone, examples, progress))

        # 4. What people would have said themselves.
        imitated = self._supervised(backbone, policy, examples, progress)

        # 5. Towards what they like, with PPO.
        progress.stage("ppo", "starting the sampler")
        sampler = self._make_sampler(
            serving.base_folder,
            self.device,
            end_id=tokenizer.eos_token_id,
            max_model_len=self._max_tokens(backbone) + config.ppo.response_tokens,
            sequences=config.ppo.batch_size,
        )
        self._standardise(backbone, judges, sampler, examples)
        history = self._ppo(
            folder=folder,
            backbone=backbone,
            tokenizer=tokenizer,
            policy=policy,
            judges=judges,
            sampler=sampler,
            examples=examples,
            progress=progress,
            lease=lease,
        )

        # 6. Against the serving policy, on prompts that it never practised on.
        progress.stage("evaluation", f"on {len(examples.kept_prompts)} prompts")
        policy.round_to_served()
        with torch.no_grad():
            weights = policy.merged()
        evaluation = evaluate(
            backbone=backbone,
            sampler=sampler,
            judges=judges,
            candidate=weights,
            serving=serving_weights,
            asked=Asked(
                prompts=examples.kept_prompts,
                replies_per_prompt=config.evaluation.replies_per_prompt,
                references=examples.held_out_demonstrations,
                sets=sets,
                set_replies=config.evaluation.set_replies,
                render=lambda case: render_prompt(tokenizer, case.as_dicts())[-self._max_tokens(backbone) :],
            ),
            pushed=examples.pushed,
            decode=lambda ids: decode(tokenizer, ids),
            history=history,
            assessment=assessment,
            held_out_by=records.held_out_by(),
            ppo=config.ppo,
            rules=config.reward.rules,
            seed=config.seed,
        )
        verdict = judge(evaluation.report, config.gate)

        # 7. Published whole, registered with its verdict, and told to people.
        progress.stage("publishing")
        lease.check()
        version = records.published()
        if version is None:
            published = publish_policy(
                kind=PolicyKind(config.publish),
                number=records.next_number(),
                base_folder=serving.base_folder,
                backbone=backbone,
                policy=policy,
                rollouts=self._probe_rollouts(sampler, backbone, weights, tokenizer),
                training={"run_id": run_id, "parent": serving.policy.version, "seed": config.seed},
                policies_folder=self.settings.policies_folder,
            )
            version, parent = published.version, serving.policy.version
            records.register(published, parent=parent, report=evaluation.report, verdict=verdict, lease=lease.row)
        write_report(
            folder.report,
            run_id=run_id,
            version=version,
            parent=serving.policy.version,
            config=config,
            votes=(len(examples.train), len(examples.held_out)),
            left_out=left_out,
            assessment=assessment,
            imitated=imitated,
            history=history,
            evaluation=evaluation,
            verdict=verdict,
            opinions=explain(reward_model, evaluation, examples.train, lambda ids: decode(tokenizer, ids)),
            prompt_text=lambda ids: readable_prompt(tokenizer, ids),
        )
        progress.write(
            stage="done",
            progress=1.0,
            message=f"{version} is {'accepted' if verdict.accepted else 'refused'}",
            policy_version=version,
            report_path=str(folder.report.relative_to(self.settings.home)),
            metrics={
                "reward_model": asdict(assessment),
                "supervised": [asdict(epoch) for epoch in imitated],
                "ppo": history,
                "evaluation": evaluation.report.as_dict(),
            },
        )
        folder.forget_examples()
        folder.forget_state()
        return Outcome(run_id, version, verdict.accepted, verdict.refusals, folder.report, assessment)

    def _examples(self, records: RunRecords, folder: RunFolder, tokenizer: Any, backbone: Backbone) -> Examples:
        found = folder.load_examples()
        if found is not None:
            return found
        config, samples = self.config, records.votes(self.config)
        if samples.votes < config.min_votes:
            raise TooFewVotes(
                f"{samples.votes} usable votes, and a run needs {config.min_votes}: "
                "wait for more, or lower min_votes in the training config"
            )
        examples = to_examples(
            samples,
            tokenizer,
            max_tokens=self._max_tokens(backbone),
            kept_prompts=config.evaluation.prompts,
            seed=config.seed,
            popular_share=config.popular_share,
        )
        if not examples.prompts:
            raise TooFewVotes(
                f"{samples.votes} usable votes, all on a single prompt, which is kept for the evaluation: "
                "wait for votes on other prompts"
            )
        if not examples.train:
            raise TooFewVotes(f"{samples.votes} usable votes, all held out: wait for votes of more people")
        records.lineage(samples)
        folder.save_examples(examples)
        return examples

    def _reward_model(
        self, records: RunRecords, folder: RunFolder, backbone: Backbone, examples: Examples, progress: RunProgress
    ) -> tuple[RewardModel, Assessment]:
        saved = folder.load_json("assessment")
        if saved is not None:
            return RewardModel.load(folder.reward_model, backbone), Assessment(**saved)
        model, votes = fit(
            backbone,
            examples.train,
            self.config.reward_model,
            self.config.seed,
            lambda s: progress.step(s.step / s.steps, f"epoch {s.epoch + 1}, loss {s.loss:.3f}"),
            held_out=examples.held_out,
            on_epoch=lambda e: progress.step(
                e.epoch / self.config.reward_model.epochs,
                f"epoch {e.epoch}, {e.held_out_nll:.3f} nats a held-out vote" + ("" if e.kept else ": stopped"),
                log=True,
            ),
        )
        assessment = assess(model, votes, examples.held_out)
        model.save(folder.reward_model)
        records.reward_model(folder.reward_model, asdict(assessment))
        folder.save_json("assessment", asdict(assessment))
        return model, assessment

    def _second_judge(
        self, folder: RunFolder, backbone: Backbone, examples: Examples, progress: RunProgress
    ) -> RewardModel | None:
        """A second reward model, of the held-out people alone, for the evaluation."""
        if len(examples.held_out) < self.config.evaluation.judge_votes:
            return None
        if (folder.judge / "reward_model.json").exists():
            return RewardModel.load(folder.judge, backbone)
        model, _ = fit(
            backbone,
            examples.held_out,
            self.config.reward_model,
            self.config.seed + 1,
            lambda s: progress.step(1.0, f"a second judge, of {len(examples.held_out)} held-out votes"),
        )
        model.save(folder.judge)
        return model

    def _supervised(
        self, backbone: Backbone, policy: Trainable, examples: Examples, progress: RunProgress
    ) -> list[SftEpoch]:
        """Train `policy` in place, where people wrote enough. Nothing is saved: the same votes and seed do it again."""
        demonstrations, config = examples.demonstrations, self.config.sft
        if len(demonstrations) < config.min_corrections:
            return []
        progress.stage("supervised", f"{len(demonstrations)} corrections")
        epochs = imitate(
            backbone,
            policy,
            demonstrations,
            examples.held_out_demonstrations,
            config=config,
            seed=self.config.seed,
            on_step=lambda share: progress.step(share, f"{share:.0%} of {config.epochs} epochs"),
        )
        kept = next(epoch for epoch in epochs if epoch.kept)
        progress.step(
            1.0, f"{epochs[0].seen:.2f} to {kept.seen:.2f} nats a token, epoch {kept.epoch} is kept", log=True
        )
        return epochs

    def _ppo(
        self,
        *,
        folder: RunFolder,
        backbone: Backbone,
        tokenizer: Any,
        policy: Trainable,
        judges: Judges,
        sampler: Samples,
        examples: Examples,
        progress: RunProgress,
        lease: HeldLease,
    ) -> list[dict[str, float]]:
        """Train `policy` in place. Returns one row an iteration."""
        config = self.config
        state = folder.load_state()
        ppo = Ppo(
            backbone=backbone,
            policy=policy,
            reward_model=judges.trained,
            judge=judges.held_out,
            sampler=sampler,
            prompts=examples.prompts,
            decode=lambda ids: decode(tokenizer, ids),
            config=config.ppo,
            reward=config.reward,
            seed=config.seed,
        )
        history: list[dict[str, float]] = []
        if state is not None:
            ppo.restore(state["ppo"])
            history = state["history"]
        writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=ppo.iteration + 1)
        while ppo.iteration < config.ppo.iterations:
            step = ppo.step()
            row = as_row(step)
            history.append(row)
            for name, value in row.items():
                writer.add_scalar(f"ppo/{name}", value, step.iteration)
            progress.step(
                step.iteration / config.ppo.iterations,
                f"{step.iteration}/{config.ppo.iterations} reward {step.reward:+.3f}{_second(step)} "
                f"KL {step.kl_nats:.2f} clip {step.clip_fraction:.3f} {step.tokens_per_second:.0f} tok/s",
                log=True,
                metrics={"ppo": history},
            )
            lease.check()  # before the checkpoint, which is another trainer's once the lease is
            if step.iteration % config.ppo.checkpoint_every == 0:
                folder.save_state({"ppo": ppo.state(), "history": history})
        writer.close()
        return history

    def _standardise(self, backbone: Backbone, judges: Judges, sampler: Samples, examples: Examples) -> None:
        """Rewards are in units of the reference policy's own spread."""
        prompts = (examples.prompts * 4)[:256]
        sampler.update(backbone, {})
        reference = sampler.sample(
            prompts,
            max_tokens=self.config.ppo.response_tokens,
            temperature=self.config.ppo.temperature,
            seed=self.config.seed,
        )
        for model in filter(None, (judges.trained, judges.held_out)):
            model.standardise([r.prompt for r in reference], [r.reply for r in reference])

    def _probe_rollouts(
        self, sampler: Samples, backbone: Backbone, weights: dict[str, Tensor], tokenizer: Any
    ) -> list[Rollout]:
        questions = [render_prompt(tokenizer, [{"role": "user", "content": asked}]) for asked in PROBE_QUESTIONS]
        sampler.update(backbone, weights)
        return sampler.sample(
            [question for question in questions for _ in range(PROBE_REPLIES)],
            max_tokens=self.config.ppo.response_tokens,
            temperature=self.config.ppo.temperature,
            seed=self.config.seed + 4,
        )

    def _max_tokens(self, backbone: Backbone) -> int:
        room = int(backbone.config.max_position_embeddings) - self.config.ppo.response_tokens
        return min(self.config.max_tokens, room)


def _second(step: Iteration) -> str:
    return f" (second judge {step.judge_reward:+.2f})" if step.judge_reward is not None else ""


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
