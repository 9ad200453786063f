"""The log as lines: each change of a vote once, in order, whatever is killed, and nothing of who does not agree."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from feedback.errors import BadCursor, StorageBusy
from feedback.follow import Follower, Tail, pseudonym, spelled
from feedback.ledger import Ledger
from feedback.privacy import erase
from feedback.schema import Conversation, Reply, User, Vote, now
from feedback.settings import Settings
from feedback.statements import table
from feedback.store import Store, open_store
from feedback.votes import Ballot, cast_vote, withdraw_vote
from tests.feedback.conftest import add_comparison, add_reply
from tests.feedback.test_cli import _MAIN, ROOT


def vote(store: Store, target: str, user: str = "ada", kind: str = "reply", **said: Any) -> int:
    with store.write() as session:
        ballot = Ballot(**(said or {"thumb": "up"}))
        return cast_vote(session, user_id=user, target_kind=kind, target_id=target, ballot=ballot).vote_id


def reply(store: Store, user: str = "ada", **fields: Any) -> str:
    with store.write() as session:
        return add_reply(session, user, **fields)


def told(follower: Follower) -> list[dict[str, Any]]:
    return [line for page in follower.news() for line in page]


def test_each_change_of_mind_is_one_line(store: Store) -> None:
    first = reply(store, prompt="q", text="t")
    with store.write() as session:
        pair = add_comparison(session, texts=("L", "R"))
    follower = Follower(store, consent_default=True)
    vote(store, first, thumb="up", comment="nice")
    vote(store, first, thumb="up", comment="nice")  # says nothing new
    vote(store, pair, kind="comparison", choice="right")
    assert [(line["change"], line["target"]) for line in told(follower)] == [("cast", first), ("cast", pair)]
    assert told(follower) == []
    vote(store, first, thumb="down", correction="better")
    with store.write() as session:
        withdraw_vote(session, user_id="ada", target_kind="reply", target_id=first)
    vote(store, first, thumb="up")
    changed, withdrawn, again = told(follower)
    assert (changed["change"], changed["revision"], changed["correction"]) == ("changed", 2, "better")
    assert changed["prompt"] == [{"role": "user", "content": "q"}]
    assert changed["replies"] == [{"id": first, "text": "t", "policy": "v1-aaaaaaaa"}]
    assert (withdrawn["change"], withdrawn["revision"], "replies" in withdrawn) == ("withdrawn", 3, False)
    assert (again["change"], again["revision"], again["user"]) == ("cast", 4, pseudonym("ada"))
    lines = told(Follower(store, consent_default=True))
    assert [line["cursor"] for line in lines] == sorted({line["cursor"] for line in lines})
    assert len(lines) == 5
    assert [side["side"] for line in lines if line["target"] == pair for side in line["replies"]] == ["left", "right"]
    later = Follower(store, consent_default=True, cursor=lines[2]["cursor"])
    assert told(later) == lines[3:]


def test_who_does_not_agree_is_not_told_and_who_goes_is_forgotten(store: Store, tmp_path: Path) -> None:
    for user in ("ada", "bob", "eve"):
        vote(store, reply(store, user), user)
    with store.write() as session:
        session.execute(update(table(User)).where(table(User).c.id == "eve").values(consent=False))
        session.execute(update(table(User)).where(table(User).c.id != "eve").values(consent=True))
    follower = Follower(store, consent_default=True)
    assert [line["user"] for line in told(follower)] == [pseudonym("ada"), pseudonym("bob")]
    with store.write() as session:
        session.execute(update(table(User)).where(table(User).c.id == "ada").values(consent=False))
    erase(store, tmp_path / "runs", "bob")
    forgotten = {line["user"]: line["reason"] for line in told(follower) if line["change"] == "forget"}
    assert forgotten == {pseudonym("ada"): "consent withdrawn", pseudonym("bob"): "erased"}
    assert told(follower) == []
    vote(store, reply(store), "ada")
    assert told(follower) == []
    # One that has nothing but a cursor to go by tells those who may have been told, once.
    with store.read() as session:
        cursor = session.execute(select(table(Vote).c.id).order_by(table(Vote).c.id.desc())).scalars().first()
    assert cursor is not None
    bare = Follower(store, consent_default=True, cursor=cursor)
    assert {line["user"] for line in told(bare)} == {pseudonym(user) for user in ("ada", "bob", "eve")}
    assert told(bare) == []


def test_what_may_not_train_is_not_told(store: Store) -> None:
    vote(store, reply(store, mixed_versions=["v1", "v2"]))
    deleted = reply(store)
    vote(store, deleted)
    with store.write() as session:
        session.execute(update(table(Conversation)).values(deleted_at=now()))
    vote(store, reply(store))
    with store.write() as session:
        session.execute(update(table(Vote)).values(quarantined=True))
    with store.write() as session:
        of_prompts = add_comparison(session)
        asked = {"messages": [{"role": "system", "content": "Be brief."}], "prompt_digest": "of the right one"}
        session.execute(update(table(Reply)).where(table(Reply).c.side == "right").values(**asked))
    vote(store, of_prompts, kind="comparison", choice="left")
    kept = vote(store, reply(store))
    assert [line["cursor"] for line in told(Follower(store, consent_default=True))] == [kept]
    assert told(Follower(store, consent_default=False)) == []
    with pytest.raises(BadCursor):
        Follower(store, consent_default=True, cursor=-1)


def test_a_vote_that_a_slow_writer_commits_late_is_not_missed(store: Store) -> None:
    targets = [reply(store) for _ in range(60)]
    follower, done, found = Follower(store, consent_default=True), threading.Event(), []

    def cast(mine: list[str]) -> None:
        ledger = Ledger(store)
        for target in mine:
            ledger.submit(
                lambda session, target=target: cast_vote(  # type: ignore[misc]
                    session, user_id="ada", target_kind="reply", target_id=target, ballot=Ballot(thumb="up")
                )
            )
        ledger.close()

    writers = [threading.Thread(target=cast, args=(targets[at::3],)) for at in range(3)]
    for writer in writers:
        writer.start()
    threading.Thread(target=lambda: ([writer.join() for writer in writers], done.set())).start()
    while not done.is_set():
        found += told(follower)
    found += told(follower)
    assert sorted(line["target"] for line in found) == sorted(targets)


def test_a_file_goes_on_after_its_last_whole_line(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    targets = [reply(store) for _ in range(4)]
    for target in targets[:2]:
        vote(store, target)

    def follow() -> None:
        with Tail(path) as tail:
            for lines in Follower(store, consent_default=True, cursor=tail.cursor, told=tail.told).news():
                tail.append(lines)

    follow()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # as a kill in the middle of a write leaves it
    for target in targets[2:]:
        vote(store, target)
    follow()
    follow()
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["target"] for line in path.read_text().splitlines()] == targets
    with Tail(path), pytest.raises(StorageBusy):
        Tail(path)
    path.write_text("something else\n")
    with pytest.raises(BadCursor):
        Tail(path)


def test_following_is_killed_and_goes_on(tmp_path: Path) -> None:
    store, path = open_store(Settings(home=tmp_path / "home")), tmp_path / "votes.jsonl"
    environment = os.environ | {"KUDOS_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _MAIN, "feedback", "export", "--format", "votes", "--follow", "--every", "0.05"]
    targets = []
    for _ in range(2):
        process = subprocess.Popen([*command, "-o", str(path)], env=environment)
        try:
            for _ in range(5):
                targets.append(reply(store))
                vote(store, targets[-1])
            deadline = time.monotonic() + 120
            while not (path.exists() and path.read_bytes().count(b"\n") == len(targets)):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    store.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["target"] for line in lines] == targets
    assert spelled(json.loads(lines[0])) == lines[0]
