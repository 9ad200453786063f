"""Who may vote on what, what a repeat is, and that a change of mind never loses what was said before."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text as sql
from sqlalchemy import update

from feedback.errors import BadBallot, IdempotencyConflict, UnknownTarget, Unvotable
from feedback.ledger import finish_reply
from feedback.schema import Conversation, ReplyState, now
from feedback.store import Store
from feedback.verdicts import count_votes, counts, effective_votes
from feedback.votes import Ballot, VoteOutcome, VoteResult, cast_vote, withdraw_vote
from tests.feedback.conftest import add_comparison, add_reply

UP, DOWN = Ballot(thumb="up"), Ballot(thumb="down")


def vote(
    store: Store, target_id: str, ballot: Ballot, *, user: str = "ada", kind: str = "reply", key=None
) -> VoteResult:
    with store.write() as session:
        return cast_vote(
            session, user_id=user, target_kind=kind, target_id=target_id, ballot=ballot, idempotency_key=key
        )


def withdraw(store: Store, target_id: str, *, user: str = "ada", kind: str = "reply") -> VoteResult:
    with store.write() as session:
        return withdraw_vote(session, user_id=user, target_kind=kind, target_id=target_id)


def effective(store: Store) -> list[tuple[str, str | None, int]]:
    with store.read() as session:
        return [(found.target_id, found.thumb or found.choice, found.revision) for found in effective_votes(session)]


@pytest.fixture
def reply_id(store: Store) -> str:
    with store.write() as session:
        return add_reply(session)


def test_a_mind_that_changes_leaves_one_effective_vote_and_all_revisions(store: Store, reply_id: str) -> None:
    outcomes = [vote(store, reply_id, ballot) for ballot in (UP, UP, DOWN, Ballot(thumb="down", comment="why not"))]
    assert [result.outcome for result in outcomes] == ["accepted", "duplicate", "changed", "changed"]
    assert [result.revision for result in outcomes] == [1, 1, 2, 3]
    assert outcomes[1].vote_id == outcomes[0].vote_id
    assert effective(store) == [(reply_id, "down", 3)]

    assert withdraw(store, reply_id).outcome is VoteOutcome.WITHDRAWN
    assert effective(store) == []
    assert withdraw(store, reply_id).outcome is VoteOutcome.DUPLICATE
    again = vote(store, reply_id, UP)
    assert (again.outcome, again.revision) == ("accepted", 5)
    with store.read() as session:
        rows = session.execute(sql("SELECT revision, thumb, withdrawn FROM vote ORDER BY revision")).all()
    assert [(row.revision, row.thumb, bool(row.withdrawn)) for row in rows] == [
        (1, "up", False),
        (2, "down", False),
        (3, "down", False),
        (4, None, True),
        (5, "up", False),
    ]


def test_a_flag_is_raised_once_however_often_its_vote_is_changed(store: Store, reply_id: str) -> None:
    said = [
        Ballot(thumb="down", harmful=True),
        Ballot(thumb="down", harmful=True),
        Ballot(thumb="down", harmful=True, comment="it is rude"),
        Ballot(thumb="down"),
        Ballot(thumb="down", harmful=True),
        None,
        Ballot(harmful=True),
    ]
    raised = []
    for ballot in said:
        with store.write() as session:
            target: dict[str, str] = {"user_id": "ada", "target_kind": "reply", "target_id": reply_id}
            result = withdraw_vote(session, **target) if ballot is None else cast_vote(session, ballot=ballot, **target)
            raised.append(result.flagged)
    assert raised == [True, False, False, False, True, False, True]


def test_everything_that_was_said_comes_back(store: Store, reply_id: str) -> None:
    said = Ballot(
        thumb="down",
        rating=0.25,
        reasons=["too long", "错了", "too long"],
        comment=" spaces stay ",
        correction="比如这样",
        harmful=True,
    )
    vote(store, reply_id, said)
    with store.read() as session:
        (found,) = effective_votes(session)
    assert (found.thumb, found.rating, found.harmful) == ("down", 0.25, True)
    assert found.reasons == ["too long", "错了"]
    assert (found.comment, found.correction) == (" spaces stay ", "比如这样")
    assert found.created_at.utcoffset() is not None
    assert abs((now() - found.created_at).total_seconds()) < 60


@pytest.mark.parametrize("state", ["streaming", "failed", "incomplete"])
def test_a_reply_that_did_not_end_well_takes_no_vote(store: Store, state: str) -> None:
    with store.write() as session:
        reply_id = add_reply(session, state=state)
    with pytest.raises(Unvotable):
        vote(store, reply_id, UP)
    assert effective(store) == []


def test_a_stopped_reply_takes_a_vote_only_if_the_user_saw_something(store: Store) -> None:
    with store.write() as session:
        empty = add_reply(session, state=ReplyState.STOPPED, text="")
        seen = add_reply(session, state=ReplyState.STOPPED, text="hel")
    with pytest.raises(Unvotable):
        vote(store, empty, UP)
    assert vote(store, seen, UP).outcome is VoteOutcome.ACCEPTED


def test_what_is_not_yours_looks_like_what_is_not_there(store: Store, reply_id: str) -> None:
    with store.write() as session:
        comparison_id = add_comparison(session)
    for target_id, kind in ((reply_id, "reply"), (comparison_id, "comparison")):
        ballot = UP if kind == "reply" else Ballot(choice="tie")
        with pytest.raises(UnknownTarget) as foreign:
            vote(store, target_id, ballot, user="eve", kind=kind)
        with pytest.raises(UnknownTarget) as absent:
            vote(store, "no-such-id", ballot, user="eve", kind=kind)
        assert str(foreign.value).replace(target_id, "") == str(absent.value).replace("no-such-id", "")
    with pytest.raises(UnknownTarget):
        vote(store, comparison_id, UP)  # a comparison is not a reply
    with pytest.raises(UnknownTarget):
        withdraw(store, reply_id)  # never voted on
    assert effective(store) == []


def test_a_deleted_conversation_takes_no_vote_but_gives_one_back(store: Store, reply_id: str) -> None:
    vote(store, reply_id, UP)
    with store.write() as session:
        session.execute(update(Conversation).values(deleted_at=now()))
    with pytest.raises(UnknownTarget):
        vote(store, reply_id, DOWN)
    assert withdraw(store, reply_id).outcome is VoteOutcome.WITHDRAWN
    assert effective(store) == []


@pytest.mark.parametrize("choice", ["left", "right", "tie", "both_bad"])
def test_a_choice_between_two_ended_replies(store: Store, choice: str) -> None:
    with store.write() as session:
        comparison_id = add_comparison(session)
    assert vote(store, comparison_id, Ballot(choice=choice), kind="comparison").outcome is VoteOutcome.ACCEPTED
    assert effective(store) == [(comparison_id, choice, 1)]
    with store.read() as session:
        assert counts(session).choices == {choice: 1}


@pytest.mark.parametrize("bad", ["streaming", "failed", "incomplete"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_comparison_with_one_bad_side_takes_no_choice(store: Store, bad: str, side: int) -> None:
    states = (bad, "complete") if side == 0 else ("complete", bad)
    with store.write() as session:
        comparison_id = add_comparison(session, states=states)
    with pytest.raises(Unvotable):
        vote(store, comparison_id, Ballot(choice="left"), kind="comparison")


def test_a_ballot_that_does_not_fit_its_target(store: Store, reply_id: str) -> None:
    with store.write() as session:
        comparison_id = add_comparison(session)
    with pytest.raises(BadBallot, match="choice"):
        vote(store, reply_id, Ballot(choice="left"))
    for ballot in (UP, Ballot(choice="left", rating=0.5), Ballot(choice="left", harmful=True)):
        with pytest.raises(BadBallot):
            vote(store, comparison_id, ballot, kind="comparison")
    with pytest.raises(BadBallot, match="target_kind"):
        vote(store, reply_id, UP, kind="poem")


def test_an_idempotency_key_answers_the_same_however_late(store: Store, reply_id: str) -> None:
    first = vote(store, reply_id, UP, key="k1")
    vote(store, reply_id, DOWN, key="k2")
    late = vote(store, reply_id, UP, key="k1")  # a retry that was stuck on the way must not undo the change
    assert (late.vote_id, late.revision, late.outcome) == (first.vote_id, 1, "duplicate")
    assert effective(store) == [(reply_id, "down", 2)]
    with pytest.raises(IdempotencyConflict):
        vote(store, reply_id, Ballot(thumb="up", comment="other"), key="k1")
    with store.write() as session:
        other_reply = add_reply(session)
        eves = add_reply(session, "eve")
    with pytest.raises(IdempotencyConflict):
        vote(store, other_reply, UP, key="k1")
    assert vote(store, eves, UP, user="eve", key="k1").outcome is VoteOutcome.ACCEPTED  # keys are each user's own


def test_a_late_retry_does_not_undo_a_withdrawal(store: Store, reply_id: str) -> None:
    vote(store, reply_id, UP, key="k1")
    withdraw(store, reply_id)
    assert vote(store, reply_id, UP, key="k1").outcome is VoteOutcome.DUPLICATE
    assert effective(store) == []


def test_many_connections_at_once_leave_one_order(store: Store, reply_id: str) -> None:
    """Each of 8 threads has a connection of its own and votes 5 times; every revision is there exactly once."""
    if store._writer is not None:
        store._writer._timeout_seconds = 60.0  # whether the disk is quick is not asked here
    barrier = threading.Barrier(8)

    def voter(number: int) -> list[VoteResult]:
        barrier.wait()
        return [vote(store, reply_id, Ballot(comment=f"{number}-{turn}")) for turn in range(5)]

    with ThreadPoolExecutor(8) as pool:
        results = [result for of_thread in pool.map(voter, range(8)) for result in of_thread]
    assert sorted(result.revision for result in results) == list(range(1, 41))
    assert sorted(result.outcome for result in results) == ["accepted"] + ["changed"] * 39
    with store.read() as session:
        (found,) = effective_votes(session)
        assert count_votes(session) == 1
    assert found.revision == 40


def test_the_same_request_at_once_is_one_vote(store: Store, reply_id: str) -> None:
    barrier = threading.Barrier(8)

    def send(_number: int) -> VoteResult:
        barrier.wait()
        return vote(store, reply_id, UP, key="k")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(send, range(8)))
    assert sorted(result.outcome for result in results) == ["accepted"] + ["duplicate"] * 7
    assert {result.vote_id for result in results} == {results[0].vote_id}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"comment": "  "},
        {"reasons": []},
        {"harmful": False},
        {"thumb": "sideways"},
        {"choice": "middle"},
        {"rating": math.nan},
        {"rating": math.inf},
        {"rating": -0.001},
        {"rating": 1.001},
        {"rating": True},
        {"rating": "0.5"},
        {"reasons": "too long"},
        {"reasons": ["x" * 65]},
        {"reasons": ["x"] * 17},
        {"reasons": ["fine", " "]},
        {"reasons": [1]},
        {"comment": "x" * 4_001},
        {"comment": 3},
        {"comment": "nul\x00"},
        {"correction": "x" * 32_001},
        {"correction": "\ud800"},
        {"harmful": "yes", "thumb": "up"},
    ],
)
def test_a_malformed_ballot_is_refused_before_the_database(fields: dict[str, object]) -> None:
    with pytest.raises(BadBallot):
        Ballot(**fields)


@given(
    rating=st.floats(0, 1), reasons=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=4)
)
def test_a_ballot_is_the_same_in_whatever_order_its_reasons_come(rating: float, reasons: list[str]) -> None:
    reasons = [reason[:64] for reason in reasons if reason.strip()]
    assert Ballot(rating=rating, reasons=reasons) == Ballot(rating=rating, reasons=[*reversed(reasons), *reasons])


@pytest.mark.parametrize("key", ["", " ", "x" * 201, "\x00"])
def test_a_malformed_key_is_refused(store: Store, reply_id: str, key: str) -> None:
    with pytest.raises(BadBallot, match="idempotency_key"):
        vote(store, reply_id, UP, key=key)


def test_nul_in_a_reply_is_kept_as_a_replacement_character(store: Store) -> None:
    """A byte-level tokenizer can emit NUL, which PostgreSQL's text type refuses: the reply must not be lost."""
    with store.write() as session:
        reply_id = add_reply(session, state="streaming")
        finish_reply(session, reply_id, state="complete", text="a\x00b")
    with store.read() as session:
        assert session.execute(sql("SELECT text FROM reply")).scalar_one() == "a\ufffdb"
