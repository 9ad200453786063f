"""Which votes become samples, what a sample holds, and that each can be traced to its vote."""

import tracemalloc
from typing import Any

import pytest
from sqlalchemy import text as sql

from feedback.samples import CorrectionSample, PairSample, SampleSet, ThumbSample, collect, record_lineage, stream
from feedback.schema import Conversation, Thumb, User, Vote, now
from feedback.splits import Split
from feedback.statements import table
from feedback.store import Store
from feedback.votes import Ballot, cast_vote, withdraw_vote
from tests.feedback.conftest import add_comparison, add_reply


def voted(session: Any, user: str = "ada", *, ballot: Ballot | None = None, **reply: Any) -> int:
    target = add_reply(session, user, **reply)
    return cast_vote(
        session, user_id=user, target_kind="reply", target_id=target, ballot=ballot or Ballot(thumb="up")
    ).vote_id


def samples_of(store: Store, **options: Any) -> SampleSet:
    with store.read() as session:
        return collect(session, consent_default=options.pop("consent_default", True), **options)


def test_a_thumb_with_all_that_was_recorded(store: Store) -> None:
    with store.write() as session:
        said = Ballot(thumb="down", rating=0.25, reasons=["curt"], harmful=True)
        vote_id = voted(session, prompt="问题", ballot=said, text="回答", arm="canary", propensity=0.05)
    (sample,) = samples_of(store).thumbs
    assert (sample.vote_id, sample.user_id, sample.kind) == (vote_id, "ada", "thumb")
    assert sample.messages == [{"role": "user", "content": "问题"}]
    assert (sample.text, sample.token_ids, sample.prompt_token_ids) == ("回答", [5, 6, 7], [1, 2])
    assert (sample.thumb, sample.rating, sample.reasons, sample.harmful) == (Thumb.DOWN, 0.25, ["curt"], True)
    assert (sample.policy_version, sample.arm, sample.propensity) == ("v1-aaaaaaaa", "canary", 0.05)
    assert (sample.source, sample.weight, len(sample.prompt_digest)) == ("chat", 1.0, 64)


def test_replies_that_their_messages_do_not_explain_do_not_train(store: Store) -> None:
    with store.write() as session:
        free = voted(session, sampling={"temperature": 0.7, "stop": ["\0", '"json_schema":', "tools"]})
        voted(session, sampling={"temperature": 0.7, "json_schema": {"type": "object"}})
        voted(session, sampling={"json_schema": {}})
        voted(session, sampling={"tools": [{"type": "function"}]})
    assert [sample.vote_id for sample in samples_of(store)] == [free]


def test_what_each_kind_of_vote_becomes(store: Store) -> None:
    with store.write() as session:
        for ballot in (
            Ballot(thumb="up"),
            Ballot(thumb="down", rating=1.0),  # the thumb is what was meant
            Ballot(rating=0.75),
            Ballot(harmful=True),
            Ballot(thumb="down", correction="better"),
            Ballot(correction="best"),
            Ballot(comment="no verdict"),
            Ballot(reasons=["none either"]),
        ):
            voted(session, ballot=ballot)
    samples = samples_of(store)
    assert [(sample.kind, sample.label) for sample in samples.thumbs] == [
        ("thumb", 1.0),
        ("thumb", 0.0),
        ("rating", 0.75),
        ("thumb", 0.0),
        ("thumb", 0.0),
    ]
    assert [(sample.kind, sample.correction) for sample in samples.corrections] == [
        ("correction", "better"),
        ("correction", "best"),
    ]
    assert samples.votes == 6
    assert len(samples) == 7


@pytest.mark.parametrize("choice", ["left", "right", "tie", "both_bad"])
def test_a_choice_stays_what_it_was(store: Store, choice: str) -> None:
    with store.write() as session:
        target = add_comparison(session, texts=("L", "R"))
        cast_vote(session, user_id="ada", target_kind="comparison", target_id=target, ballot=Ballot(choice=choice))
    (pair,) = samples_of(store).pairs
    assert (pair.choice, pair.left.text, pair.right.text, pair.kind) == (choice, "L", "R", "pair")
    assert (pair.left.token_ids, pair.left.policy_version, pair.propensity) == ([3], "v1-aaaaaaaa", 0.5)
    assert pair.left.reply_id != pair.right.reply_id


def test_what_must_not_train(store: Store) -> None:
    """Each of these differs in one thing from the vote that trains."""
    with store.write() as session:
        good = voted(session)
        voted(session, mixed_versions=["v1-aaaaaaaa", "v2-bbbbbbbb"])
        voted(session, "refuses")
        voted(session, "erased")
        quarantined = voted(session, "spammer")
        voted(session, conversation_id="deleted", user="bob")
        withdrawn = add_reply(session)
        cast_vote(session, user_id="ada", target_kind="reply", target_id=withdrawn, ballot=Ballot(thumb="up"))
        withdraw_vote(session, user_id="ada", target_kind="reply", target_id=withdrawn)
        pair = add_comparison(session, "refuses")
        cast_vote(session, user_id="refuses", target_kind="comparison", target_id=pair, ballot=Ballot(choice="left"))
        half, cut = voted(session, text="x"), voted(session, text="y")
        other_prompt = add_comparison(session)
        cast_vote(session, user_id="ada", target_kind="comparison", target_id=other_prompt, ballot=Ballot(choice="tie"))
        empty = voted(session, text="")
        session.execute(table(Vote).update().where(table(Vote).c.id == quarantined).values(quarantined=True))
        session.execute(table(User).update().where(table(User).c.id == "refuses").values(consent=False))
        session.execute(table(User).update().where(table(User).c.id == "erased").values(erased_at=now()))
        session.execute(
            table(Conversation).update().where(table(Conversation).c.id == "deleted").values(deleted_at=now())
        )
        # A reply whose state was set back by hand: nothing votes on it now, but a vote is there.
        session.execute(
            sql("UPDATE reply SET state = 'incomplete' WHERE id = (SELECT target_id FROM vote WHERE id = :id)"),
            {"id": half},
        )
        session.execute(
            sql("UPDATE reply SET finish_reason = :why WHERE id = (SELECT target_id FROM vote WHERE id = :id)"),
            {"id": cut, "why": "content_filter"},
        )
        session.execute(
            sql("UPDATE reply SET prompt_digest = 'another' WHERE comparison_id = :id AND side = 'right'"),
            {"id": other_prompt},
        )
    assert empty  # an empty reply that completed can be voted on, and teaches nothing
    assert [sample.vote_id for sample in samples_of(store)] == [good]


def test_a_users_own_choice_wins_over_the_default(store: Store) -> None:
    with store.write() as session:
        votes = {name: voted(session, name) for name in ("yes", "no", "silent")}
        for name, consent in (("yes", True), ("no", False)):
            session.execute(table(User).update().where(table(User).c.id == name).values(consent=consent))
    for default, expected in ((True, {"yes", "silent"}), (False, {"yes"})):
        found = {sample.vote_id for sample in samples_of(store, consent_default=default)}
        assert found == {votes[name] for name in expected}


def test_only_the_last_word_counts(store: Store) -> None:
    with store.write() as session:
        target = add_reply(session)
        for thumb in ("up", "down", "up", "down"):
            last = cast_vote(session, user_id="ada", target_kind="reply", target_id=target, ballot=Ballot(thumb=thumb))
    (sample,) = samples_of(store).thumbs
    assert (sample.vote_id, sample.thumb) == (last.vote_id, Thumb.DOWN)


def test_nobody_weighs_more_than_the_cap(store: Store) -> None:
    with store.write() as session:
        for _ in range(40):
            voted(session, "loud")
        for _ in range(5):
            voted(session, "quiet")
    weights: dict[str, list[float]] = {"loud": [], "quiet": []}
    for sample in samples_of(store, max_weight_per_user=10):
        weights[sample.user_id].append(sample.weight)
    assert set(weights["loud"]) == {0.25}
    assert set(weights["quiet"]) <= {1.0}
    assert {sample.weight for sample in samples_of(store, max_weight_per_user=None)} == {1.0}


def test_parts_and_the_newest(store: Store) -> None:
    with store.write() as session:
        votes = [voted(session, f"u{number}") for number in range(60)]
    samples = samples_of(store)
    train, held_out = samples.part(Split.TRAIN), samples.part("held_out")
    assert (len(train), len(held_out)) == (samples.split.train, samples.split.held_out)
    assert {sample.vote_id for sample in train} | {sample.vote_id for sample in held_out} == set(votes)
    assert not {sample.user_id for sample in train} & {sample.user_id for sample in held_out}
    assert samples.last_vote_id == votes[-1]
    newest = samples_of(store, max_votes=10)
    assert {sample.vote_id for sample in newest} == set(votes[-10:])
    assert newest.split.votes == 10
    assert samples_of(store).split == samples.split


def test_an_empty_log_is_an_empty_set(store: Store) -> None:
    samples = samples_of(store)
    assert (len(samples), samples.last_vote_id, samples.split.mode) == (0, 0, "none")


def test_lineage_names_each_vote_once_however_often_it_is_written(store: Store) -> None:
    with store.write() as session:
        for number in range(12):
            voted(session, f"u{number}", ballot=Ballot(thumb="down", correction="better"))
        target = add_comparison(session)
        cast_vote(session, user_id="ada", target_kind="comparison", target_id=target, ballot=Ballot(choice="tie"))
    samples = samples_of(store)
    for run_id, reward_model_id in (("run-1", None), ("run-1", "rm-1"), ("run-2", "rm-2")):
        with store.write() as session:
            assert record_lineage(session, run_id, reward_model_id, samples) == len(samples)
    query = sql("SELECT run_id, reward_model_id, vote_id, user_id, kind, split, weight FROM training_sample")
    with store.read() as session:
        rows = [tuple(row) for row in session.execute(query)]
    expected = [
        (run_id, model_id, sample.vote_id, sample.user_id, sample.kind, sample.split.value, 1.0)
        for run_id, model_id in (("run-1", "rm-1"), ("run-2", "rm-2"))
        for sample in samples
    ]
    assert sorted(rows) == sorted(expected)
    assert {type(sample) for sample in samples} == {ThumbSample, PairSample, CorrectionSample}


def test_a_long_log_streams_in_bounded_memory(store: Store) -> None:
    """3,000 replies of 20 kB are 60 MB; going through them must not hold them."""
    text = "x" * 20_000
    with store.write() as session:
        for number in range(3_000):
            voted(session, f"u{number % 50}", text=text)
    with store.read() as session:
        tracemalloc.start()
        total = sum(len(sample.text) for sample in stream(session, lambda _key: Split.TRAIN, consent_default=True))  # type: ignore[union-attr]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert total == 60_000_000
    assert peak < 30_000_000
