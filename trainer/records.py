"""What a run reads from the database and writes to it: its own row, the votes, the policy that it starts from, the one
that it publishes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import select

from deploy import lease as leases
from deploy import policies, rollout
from deploy.artifacts import Published
from deploy.gate import EvaluationReport, Verdict
from feedback.exposures import exposures
from feedback.privacy import clear_run_files
from feedback.samples import SampleSet, collect, record_lineage
from feedback.schema import Lease, Policy, PolicyKind, RewardModel, RunState, TrainingRun, now
from feedback.settings import Settings
from feedback.splits import SplitMode
from feedback.store import Store
from trainer.config import TrainingConfig
from trainer.errors import RunErased, TrainerError
from trainer.propensity import reweighted
from trainer.rankings import together

NEWEST_EXPOSURES = 20_000
"""Of each kind: from these is told who votes, and on what."""


@dataclass(frozen=True)
class Serving:
    """The policy that training starts from, and where it lies."""

    policy: Policy
    base_folder: Path
    adapter_folder: Path | None


class RunRecords:
    def __init__(self, settings: Settings, store: Store, run_id: str) -> None:
        self.settings, self.store, self.run_id = settings, store, run_id

    def open(self, config: TrainingConfig) -> None:
        clear_run_files(self.store, self.settings.runs_folder)
        with self.store.write() as session:
            row = session.get(TrainingRun, self.run_id) or TrainingRun(id=self.run_id)
            if row.state == RunState.SUCCEEDED:
                raise TrainerError(
                    f"{self.run_id} has ended, and no longer holds what it learned from: start a new run"
                )
            refuse_erased(row)
            row.state, row.error, row.updated_at = RunState.RUNNING, None, now()
            row.config = config.model_dump(mode="json")
            session.add(row)

    def close(self, state: RunState, **fields: Any) -> bool:
        """False for a run whose votes were erased meanwhile: it stays so."""
        with self.store.write() as session:
            row = session.get_one(TrainingRun, self.run_id)
            if row.state == RunState.ERASED:
                return False
            _set(row, state=state, finished_at=now(), **fields)
            session.add(row)
        return True

    def serving(self, model_folder: Path, version: str | None = None) -> Serving:
        """The policy of this version, else the one that serves. model_folder: what is registered as the first policy
        where there is none."""
        with self.store.write() as session:
            if not policies.everything(session):
                policies.register_base(session, model_folder)
            policy = policies.get(session, version or rollout.wanted(session).stable)
            folder = policies.folder_of(policy, self.settings.policies_folder)
            if policy.kind != PolicyKind.ADAPTER:
                return Serving(policy, folder, None)
            base = policies.get(session, policies.base_of(policy))
            return Serving(policy, policies.folder_of(base, self.settings.policies_folder), folder)

    def votes(self, config: TrainingConfig) -> SampleSet:
        with self.store.read() as session:
            samples = collect(
                session,
                consent_default=self.settings.consent_default,
                held_out_fraction=config.held_out_fraction,
                max_weight_per_user=config.user_weight_cap,
                burst_votes_per_minute=self.settings.burst_votes_per_minute,
            )
            shown = exposures(session, consent_default=self.settings.consent_default, newest=NEWEST_EXPOSURES)
        # Also where they are too few: the watcher then waits for new ones, and does not try again at once.
        left_out = {
            "burst_votes": sum(len(burst.vote_ids) for burst in samples.bursts),
            "burst_users": len({burst.user_id for burst in samples.bursts}),
            "split": samples.split.as_dict(),
        }
        self._update(last_vote_id=samples.last_vote_id, votes=samples.votes, metrics={"samples": left_out})
        return reweighted(together(samples), shown, config.vote_propensity_floor, config.user_weight_cap)

    def left_out(self) -> str:
        """Which votes the run did not read, in words; empty where it read all."""
        with self.store.read() as session:
            of = session.get_one(TrainingRun, self.run_id).metrics.get("samples") or {}
        if not of.get("burst_votes"):
            return ""
        people = "1 person" if of["burst_users"] == 1 else f"{of['burst_users']} people"
        return f"{of['burst_votes']} votes of {people} in quarantine: bursts"

    def held_out_by(self) -> SplitMode:
        """What is new about the votes that were held out."""
        with self.store.read() as session:
            of = session.get_one(TrainingRun, self.run_id).metrics.get("samples") or {}
        return SplitMode(of["split"]["mode"]) if "split" in of else SplitMode.USER_AND_PROMPT

    def lineage(self, samples: SampleSet) -> None:
        with self.store.write() as session:
            record_lineage(session, self.run_id, None, samples)

    @property
    def reward_model_id(self) -> str:
        return f"rm_{self.run_id.removeprefix('run_')}"

    def reward_model(self, folder: Path, metrics: dict[str, Any]) -> None:
        path = str(folder.relative_to(self.settings.home))
        with self.store.write() as session:
            session.merge(RewardModel(id=self.reward_model_id, run_id=self.run_id, path=path, metrics=metrics))

    def published(self) -> str | None:
        """The policy of this run, where it was killed after it had registered one."""
        with self.store.read() as session:
            return session.exec(select(Policy.version).where(Policy.run_id == self.run_id)).first()

    def next_number(self) -> int:
        with self.store.read() as session:
            return policies.next_number(session)

    def register(
        self, published: Published, *, parent: str, report: EvaluationReport, verdict: Verdict, lease: Lease
    ) -> None:
        """Raises where another trainer has taken the lease, and where votes that it learned from were erased."""
        with self.store.write() as session:
            leases.check_fence(session, lease)
            refuse_erased(session.get_one(TrainingRun, self.run_id))
            policies.register(
                session,
                published,
                parent=parent,
                run_id=self.run_id,
                reward_model_id=self.reward_model_id,
                report=report,
                verdict=verdict,
            )

    def _update(self, **fields: Any) -> None:
        with self.store.write() as session:
            row = session.get_one(TrainingRun, self.run_id)
            _set(row, **fields)
            session.add(row)


def refuse_erased(run: TrainingRun) -> None:
    """Raises RunErased for a run that may not go on."""
    if run.state == RunState.ERASED:
        raise RunErased(f"votes that {run.id} learned from were erased, and its examples with them: start a new run")


def _set(row: TrainingRun, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(row, name, value)
