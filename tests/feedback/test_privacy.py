"""An erased user is in no table and in no byte of a file, stays away, and takes nobody else's data along."""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, select
from sqlalchemy import text as sql
from sqlmodel import SQLModel

from feedback.errors import StorageBusy, UnknownTarget, UserErased
from feedback.exports import EXPORTS
from feedback.exposures import exposures
from feedback.ids import new_id
from feedback.ledger import begin_reply, ensure_conversation, ensure_user, finish_reply
from feedback.privacy import Erasure, Expiry, clear_run_files, erase, expire, holdings, trained_on
from feedback.run_files import forget_words, marked
from feedback.samples import SampleSet, collect, record_lineage, stream
from feedback.schema import (
    ApiKey,
    Conversation,
    Policy,
    ReplyState,
    RunState,
    TrainingRun,
    TrainingSample,
    User,
    Vote,
    now,
)
from feedback.settings import Settings
from feedback.splits import Split
from feedback.statements import columns, table
from feedback.store import Store, open_store
from feedback.tombstones import tombstone_id
from feedback.verdicts import counts
from feedback.votes import Ballot, cast_vote
from tests.feedback.conftest import add_comparison, add_reply, new_reply

WORD = {"ada": "kumquat", "bob": "tamarind"}  # in all that this user says, and in their id
ADA, BOB = "key-1/kumquat@example.org", "key-1/tamarind@example.org"


def live(store: Store, user: str, word: str, times: int = 1) -> str:
    """Everything that a user can leave in the log. Returns a reply that is still being written."""
    with store.write() as session:
        ensure_user(session, user)
        for number in range(times):
            conversation = new_id("conv")
            ensure_conversation(session, conversation_id=conversation, user_id=user, title=f"{word} title")
            said = {"prompt": f"{word} question {new_id('q')}", "text": f"{word} answer " * (20 * (number % 30) + 1)}
            verdict = {"flags": [{"rule": f"word {word}"}]}
            reply = add_reply(session, user, conversation_id=conversation, safety=verdict, **said)
            for thumb in ("up", "down"):
                ballot = Ballot(
                    thumb=thumb, reasons=[f"{word} tag"], comment=f"{word} because", correction=f"{word} instead"
                )
                cast_vote(
                    session, user_id=user, target_kind="reply", target_id=reply, ballot=ballot,
                    idempotency_key=f"{word} {thumb} {reply}",
                )  # fmt: skip
            pair = add_comparison(
                session, user, prompt=f"{word} which {new_id('q')}", texts=(f"{word} left", f"{word} right")
            )
            ballot = Ballot(choice="left", comment=f"{word} is better")
            cast_vote(session, user_id=user, target_kind="comparison", target_id=pair, ballot=ballot)
        return add_reply(session, user, prompt=f"{word} last", state=ReplyState.STREAMING)


def samples_of(store: Store) -> SampleSet:
    with store.read() as session:
        return collect(session, consent_default=True)


def learn(
    store: Store, settings: Settings, name: str, state: RunState = RunState.SUCCEEDED, *, parent: str | None = None
) -> Path:
    """A run on all votes of the moment, with the files that it leaves and, if it succeeded, its policy."""
    run_id, samples = f"run-{name}", samples_of(store)
    words = " ".join({word for word in WORD.values() for sample in samples if word in sample.user_id})
    report = {"win_rate": 0.7, "extra": {"pushed_phrases": [f"{words} phrase (1 people)"]}}
    with store.write() as session:
        record_lineage(session, run_id, f"rm-{name}", samples)
        session.add(TrainingRun(id=run_id, state=state, metrics={"evaluation": report, "ppo": [1]}))
        if state is RunState.SUCCEEDED:
            number = session.execute(select(columns(Policy).number)).all()
            session.add(
                Policy(
                    version=f"v{len(number)}-{name}", number=len(number), kind="adapter", path=name, digest=name,
                    run_id=run_id, parent_version=parent, report=report,
                )
            )  # fmt: skip
    folder = settings.runs_folder / run_id
    (folder / "reward_model").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "report.html").write_text(f"<h1>curves</h1>{marked(f'<p>{words}</p>')}<p>end</p>{marked(words)}")
    if state is not RunState.SUCCEEDED:
        for file in ("examples.json", "examples.json.part", "checkpoint.pt", "error.txt"):
            (folder / file).write_text(words)
    return folder


def rows(store: Store) -> dict[str, list[str]]:
    """Every row of every table that the database has, as text."""
    with store.read() as session:
        connection: Connection = session.connection()
        return {
            name: sorted(repr(tuple(row)) for row in connection.execute(sql(f'SELECT * FROM "{name}"')))
            for name in inspect(connection).get_table_names()
        }


def in_tables(store: Store, word: str) -> list[str]:
    return [name for name, found in rows(store).items() if any(word in row for row in found)]


def in_files(home: Path, word: str) -> list[str]:
    files = [path for path in home.rglob("*") if path.is_file()]
    return [path.name for path in files if word.encode() in path.read_bytes()]


def test_no_table_and_no_byte_of_a_file_holds_an_erased_users_words_or_id(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"], times=60)
    live(store, BOB, WORD["bob"], times=60)  # between ada's, so that pages of the file hold both
    live(store, ADA, WORD["ada"], times=60)
    with store.write() as session:
        session.add(ApiKey(id="key-2", sha256="2", label="kumquat's notebook", scopes=["chat"], user_id=ADA))
    done, failed = learn(store, settings, "done"), learn(store, settings, "failed", RunState.FAILED)
    before = in_tables(store, "kumquat")
    assert {"user_account", "conversation", "reply", "comparison", "vote", "api_key", "training_sample"} <= set(before)
    assert {"policy", "training_run"} <= set(before)
    assert {"report.html", "examples.json", "error.txt"} <= set(in_files(settings.home, "kumquat"))
    if store.is_sqlite:
        assert {"kudos.db", "kudos.db-wal"} & set(in_files(settings.home, "kumquat"))
    others = {name: [row for row in found if "tamarind" in row] for name, found in rows(store).items()}

    erased = erase(store, settings.runs_folder, ADA)

    assert (erased.conversations, erased.replies, erased.votes) == (242, 362, 360)
    assert erased.policies == ["v0-done"]
    assert in_tables(store, "kumquat") == []
    assert in_files(settings.home, "kumquat") == []
    assert sorted(path.name for path in failed.iterdir()) == ["config.json", "report.html", "reward_model"]
    report = (done / "report.html").read_text()
    assert report.startswith("<h1>curves</h1>")
    assert "<p>end</p>" in report
    # Runs and policies that learned from both were changed, and nothing else of bob's.
    after = {name: [row for row in found if "tamarind" in row] for name, found in rows(store).items()}
    shared = {"policy", "training_run"}
    assert {k: v for k, v in after.items() if k not in shared} == {k: v for k, v in others.items() if k not in shared}
    assert {sample.user_id for sample in samples_of(store)} == {BOB}


def test_copies_that_sqlite_left_when_it_moved_rows_are_gone_as_well(tmp_path: Path) -> None:
    """Replies that end in another order than they began make SQLite move rows between pages: zeroing a deleted row
    where it lies, which `secure_delete` does, leaves the copies."""
    settings, chance = Settings(home=tmp_path, database_url=None), random.Random(1)
    store = open_store(settings)
    try:
        for _ in range(20):
            with store.write() as session:
                begun = []
                for _ in range(80):
                    user = chance.choice(["ada", "bob"])
                    begun.append((WORD[user], new_reply(user, prompt=f"{WORD[user]} question " * chance.randrange(30))))
                    begin_reply(session, begun[-1][1])
            chance.shuffle(begun)
            for at in range(0, len(begun), 8):
                with store.write() as session:
                    for word, reply in begun[at : at + 8]:
                        finish_reply(session, reply.id, state="complete", text=f"{word} answer " * chance.randrange(60))
        erase(store, settings.runs_folder, "ada")
        assert in_files(tmp_path, "kumquat") == []
        assert in_files(tmp_path, "tamarind")
    finally:
        store.close()


def test_what_somebody_else_left_alone_is_not_touched(store: Store, settings: Settings) -> None:
    live(store, BOB, WORD["bob"], times=3)
    mine = learn(store, settings, "mine", RunState.INTERRUPTED)
    published = learn(store, settings, "published")
    before = rows(store)
    files = {path: path.read_bytes() for folder in (mine, published) for path in folder.rglob("*") if path.is_file()}
    live(store, ADA, WORD["ada"])
    assert erase(store, settings.runs_folder, ADA).policies == []
    after = rows(store)
    (tombstone,) = set(after.pop("user_account")) - set(before.pop("user_account"))
    assert tombstone_id(ADA) in tombstone
    after.pop("sqlite_sequence", None), before.pop("sqlite_sequence", None)
    assert after == before
    assert {path: path.read_bytes() for path in files} == files


def test_no_later_run_export_or_count_knows_an_erased_user(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"], times=5)
    live(store, BOB, WORD["bob"], times=5)

    def read(query: Callable[[Any], Any]) -> str:
        with store.read() as session:
            return repr(query(session))

    readers: list[Callable[[Any], Any]] = [
        lambda session: list(collect(session, consent_default=True)),
        lambda session: list(stream(session, lambda _: Split.TRAIN, consent_default=True)),
        lambda session: exposures(session, consent_default=True, newest=100),
        *(lambda session, e=export: list(e(session, consent_default=True)) for export in EXPORTS.values()),
    ]
    assert all("tamarind" in read(reader) for reader in readers)
    assert sum("kumquat" in read(reader) for reader in readers) >= 4
    erase(store, settings.runs_folder, ADA)
    assert all("tamarind" in read(reader) for reader in readers)
    assert not any("kumquat" in read(reader) for reader in readers)
    with store.read() as session:
        assert (counts(session).users, counts(session).voters) == (1, 1)


def test_what_arrives_late_is_refused(store: Store, settings: Settings) -> None:
    """A reply that was being written, a vote on an old one, a new question, a new conversation, a choice of consent."""
    writing = live(store, ADA, WORD["ada"])
    with store.read() as session:
        voted = session.execute(select(columns(Vote).target_id).where(columns(Vote).thumb == "up")).scalar_one()
    erase(store, settings.runs_folder, ADA)
    late: list[tuple[type[Exception], Callable[[Any], Any]]] = [
        (UnknownTarget, lambda session: finish_reply(session, writing, state="complete", text="kumquat again")),
        (
            UnknownTarget,
            lambda session: cast_vote(
                session, user_id=ADA, target_kind="reply", target_id=voted, ballot=Ballot(comment="kumquat again"),
            ),
        ),
        (UserErased, lambda session: add_reply(session, ADA, prompt="kumquat again")),
        (UserErased, lambda session: add_comparison(session, ADA, prompt="kumquat again")),
        (UserErased, lambda session: ensure_user(session, ADA)),
    ]  # fmt: skip
    for error, operation in late:
        with pytest.raises(error), store.write() as session:
            operation(session)
    assert in_tables(store, "kumquat") == []
    with store.write() as session:
        add_reply(session, "key-1/carol", prompt="another user is another user")


def test_an_erasure_waits_for_writes_that_have_begun(store: Store, settings: Settings) -> None:
    """Otherwise what an open transaction has written would appear after the erasure had looked for it."""
    live(store, ADA, WORD["ada"])
    erasing = threading.Thread(target=erase, args=(store, settings.runs_folder, ADA))
    with store.write() as session:
        add_reply(session, ADA, prompt="kumquat in between")
        erasing.start()
        if not store.is_sqlite:  # SQLite has one writer at a time; here it must be seen to wait
            waiting = sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            deadline = time.monotonic() + 30
            while session.execute(waiting).scalar_one() == 0:
                assert time.monotonic() < deadline, "the erasure does not wait"
                time.sleep(0.01)
        add_reply(session, ADA, prompt="kumquat at last")
    erasing.join(30)
    assert not erasing.is_alive()
    assert in_tables(store, "kumquat") == []


def test_erasing_twice_is_fine_and_says_the_same_policies(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"], times=3)
    learn(store, settings, "first")
    first = erase(store, settings.runs_folder, ADA)
    before = rows(store)
    again = erase(store, settings.runs_folder, ADA)
    assert first.policies == ["v0-first"]
    assert again == Erasure(ADA, conversations=0, replies=0, votes=0, policies=["v0-first"])
    assert rows(store) == before


def test_an_unknown_user_is_an_error_and_changes_nothing(store: Store, settings: Settings) -> None:
    live(store, BOB, WORD["bob"])
    live(store, ADA, WORD["ada"])
    erase(store, settings.runs_folder, ADA)
    before = rows(store)
    for nobody in ("eve", "", tombstone_id(ADA), WORD["bob"]):
        with pytest.raises(UnknownTarget, match="there is no user"):
            erase(store, settings.runs_folder, nobody)
    assert rows(store) == before


def test_the_policies_named_are_those_that_learned_from_the_user_and_their_descendants(
    store: Store, settings: Settings
) -> None:
    live(store, BOB, WORD["bob"], times=3)
    learn(store, settings, "before")
    live(store, ADA, WORD["ada"], times=3)
    learn(store, settings, "with", parent="v0-before")
    taken = erase(store, settings.runs_folder, ADA)
    learn(store, settings, "child", parent="v1-with")
    learn(store, settings, "sibling", parent="v0-before")
    assert taken.policies == ["v1-with"]
    with store.read() as session:
        assert trained_on(session, ADA) == ["v1-with", "v2-child"]
        assert trained_on(session, BOB) == ["v0-before", "v1-with", "v2-child", "v3-sibling"]
        assert trained_on(session, "eve") == []


def test_lineage_keeps_its_counts_under_the_tombstones_name(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"], times=3)
    live(store, BOB, WORD["bob"], times=2)
    learn(store, settings, "done")
    sample = columns(TrainingSample)
    query = select(sample.vote_id, sample.kind, sample.split, sample.weight, sample.user_id).order_by(sample.id)
    with store.read() as session:
        before = [tuple(row) for row in session.execute(query)]
    erase(store, settings.runs_folder, ADA)
    with store.read() as session:
        after = [tuple(row) for row in session.execute(query)]
    assert after == [(*row[:4], tombstone_id(ADA) if row[4] == ADA else row[4]) for row in before]


def test_a_run_that_has_not_ended_is_stopped_and_loses_its_examples(store: Store, settings: Settings) -> None:
    live(store, BOB, WORD["bob"], times=3)
    without = learn(store, settings, "without", RunState.RUNNING)
    live(store, ADA, WORD["ada"], times=3)
    states = (RunState.RUNNING, RunState.FAILED, RunState.INTERRUPTED)
    folders = [learn(store, settings, f"with-{state}", state) for state in states]
    erase(store, settings.runs_folder, ADA)
    with store.read() as session:
        for state in states:
            run = session.get_one(TrainingRun, f"run-with-{state}")
            assert run.state == RunState.ERASED
            assert run.error == "votes that it learned from were erased: start a new run"
        assert session.get_one(TrainingRun, "run-without").state == RunState.RUNNING
    assert not [path for folder in folders for path in folder.glob("examples*")]
    assert (without / "examples.json").exists()


def test_a_run_cannot_record_votes_of_somebody_who_was_erased_meanwhile(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"], times=3)
    samples = samples_of(store)
    erase(store, settings.runs_folder, ADA)
    with pytest.raises(UserErased, match="start again"), store.write() as session:
        record_lineage(session, "run-late", None, samples)
    assert rows(store)["training_sample"] == []


def test_a_key_of_their_own_is_revoked_and_one_that_speaks_for_others_stays(store: Store, settings: Settings) -> None:
    live(store, "shop", "shop")
    live(store, "shop/alice", "alice")
    with store.write() as session:
        for number, scopes in enumerate((["chat"], ["chat", "on_behalf"])):
            session.add(ApiKey(id=f"key-{number}", sha256=f"{number}", label="shop", scopes=scopes, user_id="shop"))
    erase(store, settings.runs_folder, "shop")
    with store.read() as session:
        own, product = (session.get_one(ApiKey, f"key-{number}") for number in range(2))
        assert (own.user_id, own.label, own.revoked_at is None) == (tombstone_id("shop"), "erased", False)
        assert (product.user_id, product.label, product.revoked_at) == ("shop", "shop", None)
        assert holdings(session, "shop/alice").replies == 4  # a user whose id begins alike is somebody else


def test_an_erasure_that_a_reader_holds_up_says_so_and_is_finished_by_another(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=None)
    store, reader = open_store(settings), Store(settings.database)
    try:
        live(store, ADA, WORD["ada"])
        with store.engine.connect() as connection:  # warm: the pool's connection carries the busy timeout
            connection.exec_driver_sql("PRAGMA busy_timeout = 100")
        with reader.read() as session:
            assert session.execute(select(columns(User).id)).scalars().all() == [ADA]
            with pytest.raises(StorageBusy, match="do it again"):
                erase(store, settings.runs_folder, ADA)
            assert in_tables(store, "kumquat") == []
        assert erase(store, settings.runs_folder, ADA).replies == 0
        assert in_files(tmp_path, "kumquat") == []
    finally:
        reader.close()
        store.close()


def test_the_words_of_a_report_are_taken_out_once_and_one_without_marks_goes(tmp_path: Path) -> None:
    forget_words(tmp_path / "on another machine")
    report = tmp_path / "report.html"
    report.write_text(
        f"<h1>kept</h1>\n{marked('<td>你好 kumquat' + chr(10) + '</td>')}<p>kept too</p>", encoding="utf-8"
    )
    forget_words(tmp_path)
    once = report.read_text(encoding="utf-8")
    forget_words(tmp_path)
    assert report.read_text(encoding="utf-8") == once
    assert "Removed" in once
    assert "kumquat" not in once
    assert once.startswith("<h1>kept</h1>")
    assert once.endswith("<p>kept too</p>")
    report.write_text("<td>kumquat</td>")
    forget_words(tmp_path)
    assert not report.exists()


def test_every_table_with_a_user_is_known_to_the_erasure() -> None:
    """A new table that names users must be thought of here, and in feedback.privacy."""
    named = {name for name, found in SQLModel.metadata.tables.items() if "user_id" in found.columns}
    assert named == {"api_key", "comparison", "conversation", "reply", "training_sample", "vote"}


def aged(store: Store, user: str, days: float) -> None:
    conversation = columns(Conversation)
    with store.write() as session:
        session.execute(
            table(Conversation)
            .update()
            .where(conversation.user_id == user)
            .values(updated_at=now() - timedelta(days=days))
        )


def test_what_is_older_than_the_retention_goes_with_its_words(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"], times=120)  # more conversations than one transaction takes
    live(store, BOB, WORD["bob"], times=2)
    folders = {state: learn(store, settings, state.value, state) for state in RunState if state != RunState.ERASED}
    aged(store, ADA, 31)
    aged(store, BOB, 29)
    before = rows(store)
    with store.read() as session:
        mine = holdings(session, BOB)
    gone = expire(store, settings.runs_folder, 30)
    assert (gone.conversations, gone.replies, gone.votes) == (241, 361, 360)
    with store.read() as session:
        assert holdings(session, BOB) == mine
        assert session.get_one(User, ADA).erased_at is None  # a user without conversations is a user
        states = {run.id: run.state for run in session.execute(select(TrainingRun)).scalars()}
    # What runs may learn to the end from what grew old meanwhile; what stands still has lost its examples.
    assert states == {
        "run-running": "running", "run-succeeded": "succeeded", "run-failed": "erased", "run-interrupted": "erased"
    }  # fmt: skip
    assert (folders[RunState.RUNNING] / "examples.json").exists()
    assert in_files(folders[RunState.FAILED], "kumquat") == in_files(folders[RunState.SUCCEEDED], "kumquat") == []
    assert {"reply", "conversation", "comparison", "vote"}.isdisjoint(
        name for name in in_tables(store, "kumquat question") + in_tables(store, "kumquat title")
    )
    if store.is_sqlite:
        assert not {"kudos.db", "kudos.db-wal"} & set(in_files(settings.home, "kumquat question"))
    assert expire(store, settings.runs_folder, 30) == Expiry()
    assert len(rows(store)["reply"]) == len(before["reply"]) - 361


def test_a_trainers_own_machine_catches_up(store: Store, settings: Settings, tmp_path: Path) -> None:
    live(store, ADA, WORD["ada"], times=3)
    folder = learn(store, settings, "far", RunState.FAILED)
    erase(store, tmp_path / "another machine", ADA)
    assert "examples.json" in in_files(folder, "kumquat")
    clear_run_files(store, settings.runs_folder)
    assert in_files(settings.home, "kumquat") == []


def test_a_failed_statement_does_not_quote_people(tmp_path: Path) -> None:
    """Tracebacks end up in logs, which no erasure reaches."""
    store = open_store(Settings(home=tmp_path, database_url=None))
    try:
        with pytest.raises(Exception, match="NOT NULL") as failed, store.write() as session:
            session.execute(
                sql("INSERT INTO conversation (id, title, user_id) VALUES (:id, :title, NULL)"),
                {"id": "conv-1", "title": "kumquat"},
            )
    finally:
        store.close()
    assert "kumquat" not in str(failed.value)


def test_an_erasure_is_json(store: Store, settings: Settings) -> None:
    live(store, ADA, WORD["ada"])
    found = json.loads(json.dumps(asdict(erase(store, settings.runs_folder, ADA))))
    assert found == {"user_id": ADA, "conversations": 3, "replies": 4, "votes": 3, "policies": []}
