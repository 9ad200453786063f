"""One run's stages on a real log: published, registered, told; refused, broken off, going on.

Plain torch sampling stands in the engine's place, so that a run can fail at a moment that cannot be chosen from
outside. `test_train_command.py` has the command itself, with vLLM.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sqlalchemy import text

import trainer.held_lease
import trainer.run
import trainer.samplers
from deploy import lease as leases
from deploy import policies, rollout
from deploy.artifacts import verify
from deploy.digests import base_shapes
from deploy.errors import LeaseHeld
from deploy.gate import GateLimits
from feedback.errors import StorageBusy, UserErased
from feedback.privacy import erase, trained_on
from feedback.schema import Lease, Policy, RewardModel, RunState, TrainingRun, TrainingSample
from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.trainer.models import TorchSampler, make_tokenizer
from tests.trainer.page import Page
from tests.trainer.votes import rows_of, write_votes
from trainer.config import SftConfig, TrainingConfig
from trainer.errors import BadEvaluationSet, LostLease, RunErased, TooFewVotes, TrainerError
from trainer.held_lease import LEASE, held_lease
from trainer.progress import RunProgress
from trainer.publication import PROBE_QUESTIONS
from trainer.records import RunRecords
from trainer.run import TrainingRunner
from trainer.tokens import render_prompt
from trainer.watch import abandoned_run, new_votes

CONFIG = TrainingConfig.model_validate(
    {
        "threads": 1,
        "reward_model": {
            "members": 2,
            "adapted_share": 0.5,
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 1e-2,
            "lora": {"rank": 4, "alpha": 8},
        },
        "ppo": {
            "iterations": 6,
            "batch_size": 16,
            "minibatches": 2,
            "epochs": 1,
            "response_tokens": 12,
            "checkpoint_every": 1,
            "lora": {"rank": 4, "alpha": 8},
        },
        "evaluation": {"prompts": 8, "replies_per_prompt": 2},
    }
)
QUICK = CONFIG.model_copy(update={"ppo": CONFIG.ppo.model_copy(update={"iterations": 1, "response_tokens": 5})})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=None)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()


class QuickSampler(TorchSampler):
    def __init__(self, folder: Path, device: torch.device, *, end_id: int, max_model_len: int, sequences: int) -> None:
        super().__init__(end_id)


def _runner(settings: Settings, store: Store, model: Path, config: TrainingConfig = QUICK) -> TrainingRunner:
    return TrainingRunner(settings, store, config, model, Console(file=io.StringIO()), sampler=QuickSampler)


def test_too_few_votes_are_said_so_with_the_mend_and_wake_the_watcher_only_once(
    settings: Settings, store: Store, model: Path
) -> None:
    write_votes(store, make_tokenizer(), pairs=10, thumbs=10)
    with pytest.raises(TooFewVotes, match=r"\d+ usable votes, and a run needs 50: wait for more, or lower min_votes"):
        _runner(settings, store, model).run()
    (row,) = rows_of(store, TrainingRun)
    assert row.state == RunState.FAILED
    assert "usable votes, and a run needs 50" in row.error
    # The run has seen these votes: a watcher that wakes after 20 must not start it again and again.
    with store.read() as session:
        assert new_votes(session, consent_default=True) == 0


def _write_a_burst(store: Store) -> None:
    write_votes(store, make_tokenizer(), pairs=0, thumbs=31, users=1)  # in no time
    with store.write() as session:
        session.execute(text("UPDATE vote SET user_id = 'bot'"))


def test_bursts_are_left_out_and_counted(settings: Settings, store: Store) -> None:
    _write_a_burst(store)
    write_votes(store, make_tokenizer(), pairs=0, thumbs=60, seed=1)
    for most, left, words in ((30, 60, "31 votes of 1 person in quarantine: bursts"), (31, 91, ""), (0, 91, "")):
        records = RunRecords(settings.model_copy(update={"burst_votes_per_minute": most}), store, f"run_{most}")
        records.open(QUICK)
        assert records.votes(QUICK).votes == left
        assert records.left_out() == words
    counted = {row.id: row.metrics["samples"] for row in rows_of(store, TrainingRun)}
    assert {name: counted["run_30"][name] for name in ("burst_votes", "burst_users")} == {
        "burst_votes": 31, "burst_users": 1,
    }  # fmt: skip
    assert (counted["run_0"]["burst_votes"], counted["run_0"]["burst_users"]) == (0, 0)


def test_what_is_new_about_the_held_out_votes_is_told(settings: Settings, store: Store, model: Path) -> None:
    write_votes(store, make_tokenizer(), users=12)
    outcome = _runner(settings, store, model).run()
    (row,) = rows_of(store, TrainingRun)
    assert row.metrics["samples"]["split"]["mode"] == row.metrics["evaluation"]["held_out_by"] == "prompt"
    assert outcome.report is not None
    assert "Too few people voted to hold some of them out" in outcome.report.read_text()


def test_where_enough_people_vote_some_are_held_out(settings: Settings, store: Store) -> None:
    write_votes(store, make_tokenizer(), users=4)
    records = RunRecords(settings.model_copy(update={"burst_votes_per_minute": 0}), store, "run-1")
    records.open(QUICK)
    records.votes(QUICK)
    assert records.held_out_by() == "user_and_prompt"


def test_votes_on_a_single_prompt_are_too_few(settings: Settings, store: Store, model: Path) -> None:
    """One prompt cannot be both practised on and kept for the evaluation."""
    write_votes(store, make_tokenizer(), prompts=1)
    with pytest.raises(TooFewVotes, match="on a single prompt"):
        _runner(settings, store, model).run()


def test_a_second_trainer_cannot_take_the_lease_and_leaves_no_trace(
    settings: Settings, store: Store, model: Path
) -> None:
    held = leases.acquire(store, LEASE, "the first", 60)
    with pytest.raises(LeaseHeld, match="the first holds the lease 'trainer'"):
        _runner(settings, store, model).run()
    assert rows_of(store, TrainingRun) == []
    leases.release(store, held)


def test_the_reward_model_alone_leaves_its_files_its_row_and_its_lineage(
    settings: Settings, store: Store, model: Path
) -> None:
    write_votes(store, make_tokenizer())
    outcome = _runner(settings, store, model).run(reward_model_only=True)
    folder = settings.runs_folder / outcome.run_id
    assert outcome.version is None
    assert (folder / "reward_model" / "reward_model.safetensors").exists()
    assert not (folder / "examples.json").exists()
    (row,) = rows_of(store, RewardModel)
    assert row.run_id == outcome.run_id
    assert row.metrics["accuracy"] == outcome.assessment.accuracy
    samples = rows_of(store, TrainingSample)
    assert len(samples) > 50
    assert {sample.run_id for sample in samples} == {outcome.run_id}
    assert {sample.split for sample in samples} == {"train", "held_out"}


def test_a_run_that_fails_between_registration_and_report_publishes_one_policy_when_resumed(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_a_burst(store)
    write_votes(store, make_tokenizer())
    write_report = trainer.run.write_report

    def full_disk(*arguments: Any, **values: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(trainer.run, "write_report", full_disk)
    with pytest.raises(OSError, match="no space left"):
        _runner(settings, store, model).run()
    (row,) = rows_of(store, TrainingRun)
    assert row.state == RunState.FAILED
    assert "no space left" in (settings.runs_folder / row.id / "error.txt").read_text()

    monkeypatch.setattr(trainer.run, "write_report", write_report)
    outcome = _runner(settings, store, model).run(resume=row.id)
    published = [policy for policy in rows_of(store, Policy) if policy.run_id == row.id]
    assert [policy.version for policy in published] == [outcome.version]
    assert outcome.report is not None
    assert "31 votes of 1 person in quarantine: bursts." in outcome.report.read_text()

    # And a run that has ended is not trained again, with its reward model on votes that it never saw.
    with pytest.raises(TrainerError, match="has ended"):
        _runner(settings, store, model).run(resume=row.id)
    (row,) = rows_of(store, TrainingRun)
    assert row.state == RunState.SUCCEEDED


def test_a_trainer_that_has_lost_its_lease_publishes_nothing(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_votes(store, make_tokenizer())
    evaluate = trainer.run.evaluate

    def overtaken(**values: Any) -> Any:
        with store.write() as session:
            row = session.get(Lease, LEASE)
            assert row is not None
            row.holder, row.fence = "another", row.fence + 1
            session.add(row)
        return evaluate(**values)

    monkeypatch.setattr(trainer.run, "evaluate", overtaken)
    with pytest.raises(Exception, match="went to another"):
        _runner(settings, store, model).run()
    assert [policy.kind for policy in rows_of(store, Policy)] == ["base"]
    (row,) = rows_of(store, TrainingRun)
    assert row.state == RunState.RUNNING, "what the run is, the other one says from now on"


def test_a_run_goes_on_from_the_policy_with_which_it_began(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one has been promoted since."""
    write_votes(store, make_tokenizer())
    other = _runner(settings, store, model).run().version
    assert other is not None
    publish = trainer.run.publish_policy

    def killed(**values: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.run, "publish_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        _runner(settings, store, model).run()
    with store.write() as session:
        run_id = abandoned_run(session)
        rollout.start(session, other, share=1.0, force=True, reason="a test")
        rollout.promote(session)
    monkeypatch.setattr(trainer.run, "publish_policy", publish)
    version = _runner(settings, store, model).run(resume=run_id).version
    parents = {policy.version: policy.parent_version for policy in rows_of(store, Policy)}
    assert parents[version] == parents[other] != other


def test_a_run_that_a_busy_database_ended_is_taken_up_again(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_votes(store, make_tokenizer())
    with monkeypatch.context() as patched:
        patched.setattr(RunRecords, "reward_model", _busy)
        with pytest.raises(StorageBusy):
            _runner(settings, store, model).run(reward_model_only=True)
    with store.read() as session:
        run_id = abandoned_run(session)
    outcome = _runner(settings, store, model).run(resume=run_id)
    (row,) = rows_of(store, TrainingRun)
    assert (row.id, row.state, row.error) == (outcome.run_id, RunState.SUCCEEDED, None)


def test_a_run_that_was_to_fit_the_reward_model_alone_does_no_more_when_it_goes_on(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_votes(store, make_tokenizer())
    assess = trainer.run.assess

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.run, "assess", killed)
    with pytest.raises(KeyboardInterrupt):
        _runner(settings, store, model).run(reward_model_only=True)
    monkeypatch.setattr(trainer.run, "assess", assess)
    with store.read() as session:
        run_id = abandoned_run(session)
    assert _runner(settings, store, model).run(resume=run_id).version is None
    assert [policy.kind for policy in rows_of(store, Policy)] == ["base"]


def _busy(*arguments: Any, **values: Any) -> Any:
    raise StorageBusy("another process has been writing for 5 s")


def test_a_busy_database_costs_no_lease_before_it_runs_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.held_lease, "LEASE_SECONDS", 0.8)
    with held_lease(store) as lease:
        with monkeypatch.context() as patched:
            patched.setattr(leases, "renew", _busy)
            time.sleep(0.3)
        lease.check()
        time.sleep(0.8)
        lease.check()
        monkeypatch.setattr(leases, "renew", _busy)
        time.sleep(1.2)
        with pytest.raises(LostLease, match="ran out, as it could not be renewed: another process has been writing"):
            lease.check()


def test_a_busy_database_stops_no_step_and_the_next_one_says_where_the_run_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.write() as session:
        session.add(TrainingRun(id="run-1"))
    with RunProgress(store, "run-1", Console(file=io.StringIO())) as progress:
        with monkeypatch.context() as patched:
            patched.setattr(store, "write", _busy)
            progress.stage("ppo", "1/16")
        progress.stage("ppo", "2/16")
    (row,) = rows_of(store, TrainingRun)
    assert row.message == "2/16"


@pytest.mark.parametrize("moment", ["evaluate", "publish_policy"])
def test_a_run_that_learned_from_somebody_who_is_erased_publishes_nothing(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write_votes(store, make_tokenizer())
    go_on = getattr(trainer.run, moment)

    def erasing(**values: Any) -> Any:
        done = go_on(**values)
        assert erase(store, settings.runs_folder, "u-0").policies == []
        return done

    monkeypatch.setattr(trainer.run, moment, erasing)
    with pytest.raises(RunErased, match="start a new run"):
        _runner(settings, store, model).run()
    assert [policy.kind for policy in rows_of(store, Policy)] == ["base"]
    (row,) = rows_of(store, TrainingRun)
    assert (row.state, row.error) == (RunState.ERASED, "votes that it learned from were erased: start a new run")
    left = {path.name for path in (settings.runs_folder / row.id).iterdir()}
    assert not left & {"examples.json", "checkpoint.pt", "error.txt", "report.html"}
    with pytest.raises(RunErased, match="start a new run"):
        _runner(settings, store, model).run(resume=row.id)
    with store.read() as session:
        assert abandoned_run(session) is None, "a watcher does not resume it"

    monkeypatch.setattr(trainer.run, moment, go_on)
    outcome = _runner(settings, store, model).run()
    with store.read() as session:
        assert outcome.version not in trained_on(session, "u-0")
        assert outcome.version in trained_on(session, "u-1")


def test_somebody_who_is_erased_while_votes_are_read_is_not_learned_from(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_votes(store, make_tokenizer())
    to_examples = trainer.run.to_examples

    def erasing(*arguments: Any, **values: Any) -> Any:
        erase(store, settings.runs_folder, "u-0")
        return to_examples(*arguments, **values)

    monkeypatch.setattr(trainer.run, "to_examples", erasing)
    with pytest.raises(UserErased, match="start again"):
        _runner(settings, store, model).run()
    (row,) = rows_of(store, TrainingRun)
    assert row.state == RunState.FAILED
    assert rows_of(store, TrainingSample) == []
    assert not (settings.runs_folder / row.id / "examples.json").exists()


def test_the_gates_limits_are_settings_of_the_run(settings: Settings, store: Store, model: Path) -> None:
    write_votes(store, make_tokenizer())
    config = QUICK.model_copy(update={"gate": GateLimits(min_prompts=1000)})
    outcome = _runner(settings, store, model, config).run()
    (row,) = [policy for policy in rows_of(store, Policy) if policy.version == outcome.version]
    assert any("at least 1000 are needed" in refusal for refusal in row.refusals)
    assert "The gate's min_prompts was set to 1000; it is 32 by default." in row.report["flags"]


def test_what_a_run_publishes_quotes_nobody_and_its_report_nobody_who_was_erased(
    settings: Settings, store: Store, model: Path
) -> None:
    tokenizer = make_tokenizer()
    write_votes(store, tokenizer)
    outcome = _runner(settings, store, model).run()
    (row,) = [policy for policy in rows_of(store, Policy) if policy.version == outcome.version]
    probe = verify(policies.folder_of(row, settings.policies_folder), base_shapes(model), digest=row.digest).probe
    own = [render_prompt(tokenizer, [{"role": "user", "content": asked}]) for asked in PROBE_QUESTIONS]
    assert all(case.prompt_token_ids in own for case in probe.cases)

    assert outcome.report is not None
    before = outcome.report.read_text()
    quoted = ("Replies before and after", "how are you?", "What the reward model sees")
    assert all(words in before for words in quoted)
    assert erase(store, settings.runs_folder, "u-0").policies == [outcome.version]
    after = outcome.report.read_text()
    assert not any(words in after for words in quoted)
    assert "The gate " in after
    assert "Through training" in after
    page = Page()
    page.feed(after)
    page.close()
    assert page.open == []


def test_an_evaluation_set_that_cannot_be_read_ends_a_run_before_it_learns(
    settings: Settings, store: Store, model: Path, tmp_path: Path
) -> None:
    write_votes(store, make_tokenizer())
    (tmp_path / "sums.jsonl").write_text('{"messages": []}')
    evaluation = QUICK.evaluation.model_copy(update={"sets": {"sums": str(tmp_path / "sums.jsonl")}})
    with pytest.raises(BadEvaluationSet, match=r"sums\.jsonl, line 1: messages"):
        _runner(settings, store, model, QUICK.model_copy(update={"evaluation": evaluation})).run()
    (row,) = rows_of(store, TrainingRun)
    assert (row.state, row.stage) == (RunState.FAILED, "starting")
    with pytest.raises(ValueError, match="Sums!"):
        TrainingConfig.model_validate({"evaluation": {"sets": {"Sums!": "sums.jsonl"}}})


def test_corrections_are_imitated_before_ppo_and_the_report_says_so(
    settings: Settings, store: Store, model: Path, tmp_path: Path
) -> None:
    write_votes(store, make_tokenizer(), thumbs=60, corrections=True)
    case = {"messages": [{"role": "user", "content": "hello"}], "must_not_match": ["thank you very much"]}
    (tmp_path / "curt.jsonl").write_text(json.dumps(case))
    evaluation = QUICK.evaluation.model_copy(update={"sets": {"curt": str(tmp_path / "curt.jsonl")}})
    config = QUICK.model_copy(update={"sft": SftConfig(learning_rate=2e-2), "evaluation": evaluation})
    outcome = _runner(settings, store, model, config).run()
    (row,) = rows_of(store, TrainingRun)
    epochs = row.metrics["supervised"]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2, 3]
    assert sum(epoch["kept"] for epoch in epochs) == 1
    assert epochs[-1]["seen"] < 0.8 * epochs[0]["seen"]
    # PPO starts from what was imitated: at its first rollout the policy is away from the reference.
    assert row.metrics["ppo"][0]["kl_nats"] > 0.01
    assert outcome.report is not None
    text = outcome.report.read_text()
    assert "Other people's corrections" in text
    assert "Evaluation sets" in text
    rates = row.metrics["evaluation"]["sets"]["curt"]
    assert rates["prompts"] == 1
    assert rates["candidate_lower"] < rates["candidate"] <= rates["candidate_upper"] or rates["candidate"] == 0.0
    assert f"{rates['candidate']:.3f} [{rates['candidate_lower']:.3f}" in text


@pytest.mark.slow
def test_without_vllm_transformers_answers(
    settings: Settings, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_votes(store, make_tokenizer())
    monkeypatch.setattr(trainer.samplers, "find_spec", lambda name: None)
    outcome = TrainingRunner(settings, store, QUICK, model, Console(file=io.StringIO())).run()
    (row,) = rows_of(store, TrainingRun)
    assert row.policy_version == outcome.version is not None
    assert 0 < row.metrics["ppo"][0]["sampler_gap_nats"] < QUICK.ppo.sampler_gap_nats


@pytest.mark.slow
def test_full_fine_tuning_starts_from_the_served_adapter_and_publishes_a_whole_checkpoint(
    settings: Settings, store: Store, model: Path
) -> None:
    write_votes(store, make_tokenizer())
    adapter = _runner(settings, store, model).run().version
    assert adapter is not None
    with store.write() as session:
        rollout.start(session, adapter, share=1.0, force=True, reason="a test")
        rollout.promote(session)
    # Long enough that some replies end: where none does all have the same reward, and nothing is learned.
    full = {"method": "full", "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "response_tokens": 24}
    config = TrainingConfig.model_validate(
        QUICK.model_dump() | {"publish": "full", "ppo": QUICK.ppo.model_dump() | full}
    )
    version = _runner(settings, store, model, config).run().version
    assert version is not None
    (row,) = [policy for policy in rows_of(store, Policy) if policy.version == version]
    assert (row.kind, row.parent_version) == ("full", adapter)
    folder = policies.folder_of(row, settings.policies_folder)
    verify(folder, base_shapes(model), digest=row.digest)
    trained, base = (load_file(path / "model.safetensors") for path in (folder, model))
    moved = {name for name, weight in base.items() if not torch.equal(weight, trained[name])}
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"} <= moved


def test_full_fine_tuning_cannot_be_published_as_an_adapter() -> None:
    full = {"method": "full", "learning_rate": 1e-5, "critic_learning_rate": 1e-5}
    with pytest.raises(ValueError, match='set publish to "full"'):
        TrainingConfig.model_validate({"ppo": full})
