"""What counts as shown: everything that people who agreed saw whole in the chat, voted on or not."""

from typing import Any

from feedback.exposures import Exposure, exposures
from feedback.schema import ReplyState, TargetKind, User
from feedback.store import Store
from feedback.votes import Ballot, cast_vote, withdraw_vote
from tests.feedback.conftest import add_comparison, add_reply


def found(store: Store, **options: Any) -> list[Exposure]:
    with store.read() as session:
        return exposures(session, **{"consent_default": True, "newest": 100} | options)


def test_replies_and_comparisons_voted_on_or_not(store: Store) -> None:
    with store.write() as session:
        liked = add_reply(session, "ada", text="liked")
        add_reply(session, "ada", text="passed over")
        taken_back = add_reply(session, "bob", text="taken back")
        decided, open_one = add_comparison(session, "ada"), add_comparison(session, "bob")
        up = Ballot(thumb="up")
        cast_vote(session, user_id="ada", target_kind="reply", target_id=liked, ballot=up)
        cast_vote(session, user_id="bob", target_kind="reply", target_id=taken_back, ballot=up)
        withdraw_vote(session, user_id="bob", target_kind="reply", target_id=taken_back)
        cast_vote(session, user_id="ada", target_kind="comparison", target_id=decided, ballot=Ballot(choice="left"))
    assert open_one
    replies = {(e.user_id, e.texts, e.voted) for e in found(store) if e.kind is TargetKind.REPLY}
    assert replies == {("ada", ("liked",), True), ("ada", ("passed over",), False), ("bob", ("taken back",), False)}
    pairs = {(e.user_id, e.voted) for e in found(store) if e.kind is TargetKind.COMPARISON}
    assert pairs == {("ada", True), ("bob", False)}
    assert all(len(e.texts) == 2 for e in found(store) if e.kind is TargetKind.COMPARISON)


def test_what_was_not_shown_whole_or_not_agreed_to_is_left_out(store: Store) -> None:
    with store.write() as session:
        add_reply(session, "ada", text="half", state=ReplyState.INCOMPLETE)
        add_reply(session, "ada", text="{}", sampling={"json_schema": {"type": "object"}})
        add_reply(session, "ada", text="imported", source="hh")
        add_reply(session, "eve", text="no consent")
        session.merge(User(id="eve", consent=False))
    assert found(store) == []
    with store.write() as session:
        add_reply(session, "zoe", text="nobody asked her")
    assert len(found(store)) == 1
    assert found(store, consent_default=False) == []


def test_only_the_newest(store: Store) -> None:
    with store.write() as session:
        for number in range(5):
            add_reply(session, "ada", text=str(number))
    assert [e.texts for e in found(store, newest=2)] == [("4",), ("3",)]
