"""The registry and the line behind a policy, on both databases."""

import shutil
from pathlib import Path

import pytest

from deploy import errors, policies
from deploy.artifacts import publish
from deploy.digests import model_digest, tokenizer_digest
from deploy.gate import judge
from feedback.schema import Policy, PolicyKind, PolicyState, Reply, ReplyState, RewardModel, TrainingRun, TrainingSample
from feedback.store import Store
from tests.deploy.folders import adapter_draft, make_adapter, make_model, publish_adapter, publish_full
from tests.deploy.test_gate import GOOD


def test_a_base_is_registered_once_wherever_it_lies(store: Store, base: Path, tmp_path: Path) -> None:
    with store.write() as session:
        first = policies.register_base(session, base)
    assert (first.number, first.kind, first.state) == (0, PolicyKind.BASE, PolicyState.ACCEPTED)
    assert first.version == f"v0-{model_digest(base)[:8]}"
    moved = shutil.copytree(base, tmp_path / "moved")
    with store.write() as session:
        again = policies.register_base(session, moved)
    assert again.version == first.version
    with store.read() as session:
        assert [row.path for row in policies.everything(session)] == [str(moved)]
        assert policies.next_number(session) == 1


def test_digests_see_what_matters_and_nothing_else(base: Path) -> None:
    model, tokenizer = model_digest(base), tokenizer_digest(base)
    (base / "README.md").write_text("a note")
    assert (model_digest(base), tokenizer_digest(base)) == (model, tokenizer)
    (base / "chat_template.jinja").write_text("{{ other }}")
    assert model_digest(base) == model
    assert tokenizer_digest(base) != tokenizer
    (base / "config.json").write_text("{}")
    assert model_digest(base) != model


def test_an_older_folder_keeps_its_template_in_the_tokenizers_config(base: Path) -> None:
    digest = tokenizer_digest(base)
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    assert tokenizer_digest(base) != digest
    (base / "tokenizer_config.json").write_text('{"chat_template": "' + template + '"}')
    assert tokenizer_digest(base) == digest


def test_shards_are_read_through_their_index(base: Path, tmp_path: Path) -> None:
    import json

    from safetensors.numpy import load_file, save_file

    from deploy.safetensors_check import shapes_of

    whole = shapes_of(base)
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-{part}.safetensors"
        save_file({name: tensors[name] for name in chosen}, base / file)
        weight_map |= dict.fromkeys(chosen, file)
    (base / "model.safetensors").unlink()
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert shapes_of(base) == whole
    assert len(model_digest(base)) == 64
    index.write_text(json.dumps({"weight_map": {"x": "../base/model-0.safetensors"}}))
    with pytest.raises(errors.BadTensors, match=r"index.json"):
        shapes_of(base)


def test_registering_with_a_verdict(store: Store, base: Path, root: Path, tmp_path: Path) -> None:
    published = publish_adapter(base, root, tmp_path)
    with store.write() as session:
        parent = policies.register_base(session, base).version
        policy = policies.register(session, published, parent=parent, report=GOOD, verdict=judge(GOOD))
        assert policy.state == PolicyState.ACCEPTED
        assert policy.base_version == parent
        assert policy.report["win_rate"] == 0.7
    with store.write() as session:
        again = policies.register(session, published, parent=parent)
        assert again.state == PolicyState.ACCEPTED
        assert policies.folder_of(again, root) == published.path
        other = publish(make_adapter(tmp_path / "other", seed=8), adapter_draft(base), root)
        with pytest.raises(errors.VersionTaken):
            policies.register(session, other, parent=parent)


def test_a_refused_policy_keeps_its_reasons(store: Store, base: Path, root: Path, tmp_path: Path) -> None:
    import dataclasses

    bad = dataclasses.replace(GOOD, kl_nats=99.0)
    published = publish_adapter(base, root, tmp_path)
    with store.write() as session:
        parent = policies.register_base(session, base).version
        assert policies.register(session, published, parent=parent).state == PolicyState.CANDIDATE
    with store.write() as session:
        policies.record_verdict(session, policies.get(session, published.version), bad, judge(bad))
    with store.read() as session:
        policy = policies.get(session, published.version)
        assert policy.state == PolicyState.REFUSED
        assert "99.00 nats" in policy.refusals[0]


def test_an_adapter_is_registered_only_on_its_own_base(store: Store, base: Path, root: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other-base", seed=4)
    published = publish_adapter(other, root, tmp_path)
    with store.write() as session:
        parent = policies.register_base(session, base).version
        for claimed in (parent, None):
            with pytest.raises(errors.WrongBase):
                policies.register(session, published, parent=claimed)


def test_an_adapter_on_a_full_checkpoint(store: Store, base: Path, root: Path, tmp_path: Path) -> None:
    full = publish_full(base, root, tmp_path, number=1)
    on_full = publish_adapter(full.path, root, tmp_path, number=2)
    with store.write() as session:
        parent = policies.register_base(session, base).version
        assert policies.register(session, full, parent=parent).base_version is None
        assert policies.register(session, on_full, parent=full.version).base_version == full.version


def _reply(version: str, state: ReplyState, number: int) -> Reply:
    return Reply(
        id=f"chatcmpl-{number}", conversation_id="conv-1", user_id="ada", messages=[], prompt_digest="d",
        policy_version=version, state=state,
    )  # fmt: skip


def test_lineage_both_ways(store: Store, base: Path, root: Path, tmp_path: Path) -> None:
    with store.write() as session:
        parent = policies.register_base(session, base).version
        session.add(TrainingRun(id="run-1", last_vote_id=12))
        session.add(RewardModel(id="rm-1", run_id="run-1", path="runs/run-1/reward"))
        for vote_id, user, split in ((3, "ada", "train"), (4, "ada", "held_out"), (9, "bob", "train")):
            session.add(
                TrainingSample(
                    run_id="run-1", reward_model_id="rm-1", vote_id=vote_id, user_id=user, kind="pair", split=split
                )
            )
        first = policies.register(
            session, publish_adapter(base, root, tmp_path, 1), parent=parent, run_id="run-1", reward_model_id="rm-1"
        )
        second = policies.register(session, publish_adapter(base, root, tmp_path, 2), parent=first.version)
        for number, state in enumerate((ReplyState.COMPLETE, ReplyState.COMPLETE, ReplyState.STOPPED)):
            session.add(_reply(first.version, state, number))
    with store.read() as session:
        line = policies.lineage(session, first.version)
        assert [row.version for row in line.ancestors] == [parent]
        assert [row.version for row in line.children] == [second.version]
        assert line.run is not None
        assert line.run.last_vote_id == 12
        assert line.reward_model is not None
        assert line.reward_model.id == "rm-1"
        assert {(count.split, count.samples) for count in line.samples} == {("train", 2), ("held_out", 1)}
        assert (line.vote_ids, line.voters) == ([3, 4, 9], 2)
        assert line.replies == {"complete": 2, "stopped": 1}
        assert [row.version for row in policies.lineage(session, second.version).ancestors] == [first.version, parent]
        assert policies.lineage(session, parent).vote_ids == []
        with pytest.raises(errors.UnknownPolicy):
            policies.lineage(session, "v9-ffffffff")


def test_what_became_of_a_users_votes(store: Store) -> None:
    """A vote counts once, however many samples it was; what a reward model was only tested on taught nothing."""
    with store.write() as session:
        for number, run_id in enumerate((None, "run-1", "run-2", "run-3")):
            version = f"v{number}-00000000"
            session.add(
                Policy(version=version, number=number, kind="adapter", path=version, digest=version, run_id=run_id)
            )
        rows = [
            ("run-1", 1, "ada", "thumb", "train"),
            ("run-1", 1, "ada", "correction", "train"),
            ("run-1", 2, "ada", "pair", "train"),
            ("run-1", 3, "ada", "pair", "held_out"),
            ("run-1", 4, "bob", "pair", "train"),
            ("run-2", 3, "ada", "pair", "held_out"),
            ("run-3", 2, "ada", "pair", "train"),
            ("run-9", 2, "ada", "pair", "train"),
        ]
        for run_id, vote_id, user_id, kind, split in rows:
            session.add(TrainingSample(run_id=run_id, vote_id=vote_id, user_id=user_id, kind=kind, split=split))
    with store.read() as session:
        found = [(taught.policy.number, taught.votes) for taught in policies.taught_by(session, "ada")]
        assert found == [(1, 2), (3, 1)]
        assert policies.taught_by(session, "eve") == []
