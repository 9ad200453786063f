"""What counts as evidence, read from real logs on both databases."""

from datetime import timedelta

import pytest
from sqlmodel import Session, select

from deploy import rollout
from deploy.decision import Compared, Evidence, Served
from deploy.evidence import gather
from feedback.schema import Choice, PolicyKind, ReplyState, Thumb, Vote
from feedback.store import Store
from feedback.votes import Ballot, withdraw_vote
from tests.deploy.rows import add_policy, compare, serve, vote

UP, DOWN = Thumb.UP, Thumb.DOWN


@pytest.fixture
def versions(store: Store) -> tuple[str, str]:
    """The stable policy and the candidate, which 25 % meet."""
    with store.write() as session:
        stable, candidate = add_policy(session, 0, PolicyKind.BASE), add_policy(session, 1)
        rollout.start(session, candidate, 0.25, "ada")
    return stable, candidate


def gathered(store: Store) -> Evidence:
    with store.read() as session:
        row = rollout.current(session)
        assert row is not None
        return gather(session, row)


def test_a_fresh_rollout_has_none(store: Store, versions: tuple[str, str]) -> None:
    found = gathered(store)
    assert (found.stable, found.candidate, found.share) == (*versions, 0.25)
    assert (list(found.served), list(found.compared), found.step_votes, found.held) == ([], [], 0, "")
    assert 0 <= found.minutes < 5


def test_each_user_is_counted_by_arm_and_step(store: Store, versions: tuple[str, str]) -> None:
    stable, candidate = versions
    with store.write() as session:
        serve(session, "ann", stable, 0.25, candidate=False, thumbs=[UP, DOWN, None])
        serve(session, "bob", candidate, 0.25, candidate=True, thumbs=[DOWN])
        serve(session, "bob", candidate, 0.25, candidate=True, state=ReplyState.FAILED)
        serve(session, "eve", candidate, 0.25, candidate=True, state=ReplyState.INCOMPLETE)
    with store.write() as session:
        rollout.advance(session, "ada", share=0.6)
        serve(session, "ann", candidate, 0.6, candidate=True, thumbs=[UP])
        serve(session, "cem", stable, 0.6, candidate=False, thumbs=[UP])
    found = gathered(store)
    assert list(found.served) == [
        Served("ann", True, 0.6, 1, up=1),
        Served("ann", False, 0.25, 3, up=1, down=1),
        Served("bob", True, 0.25, 1, down=1, failed=1),
        Served("cem", False, 0.6, 1, up=1),
        Served("eve", True, 0.25, 0),
    ]
    assert found.step_votes == 2, "those on replies of this step"


def test_minds_that_change_and_votes_that_come_late(store: Store, versions: tuple[str, str]) -> None:
    _, candidate = versions
    with store.write() as session:
        changed, withdrawn, late = serve(session, "bob", candidate, 0.25, candidate=True, thumbs=[UP, UP, None])
        vote(session, "bob", changed, Ballot(thumb=DOWN, harmful=True))
        withdraw_vote(session, user_id="bob", target_kind="reply", target_id=withdrawn)
        quarantined = serve(session, "mal", candidate, 0.25, candidate=True, thumbs=[DOWN, UP])
        row = session.exec(select(Vote).where(Vote.target_id == quarantined[0])).one()
        row.quarantined = True
        session.add(row)
    assert list(gathered(store).served) == [
        Served("bob", True, 0.25, 3, down=1, harmful=1),
        Served("mal", True, 0.25, 2, up=1),
    ]
    with store.write() as session:
        rollout.advance(session, "ada", share=0.6)
        vote(session, "bob", late, Ballot(thumb=DOWN))
    found = gathered(store)
    assert found.served[0] == Served("bob", True, 0.25, 3, down=2, harmful=1), "it counts for the step it is about"
    assert found.step_votes == 0


def test_what_the_safety_filter_flagged_counts_as_flagged(store: Store, versions: tuple[str, str]) -> None:
    _, candidate = versions
    with store.write() as session:
        serve(session, "bob", candidate, 0.25, candidate=True, safety_flag="rules", state=ReplyState.STOPPED,
              finish_reason="content_filter")  # fmt: skip
        serve(session, "cem", candidate, 0.25, candidate=True, safety_flag="classifier", thumbs=[UP])  # only flagged
    assert list(gathered(store).served) == [
        Served("bob", True, 0.25, 0, harmful=1),
        Served("cem", True, 0.25, 1, up=1, harmful=1),
    ]


def test_what_is_no_part_of_the_experiment(store: Store, versions: tuple[str, str]) -> None:
    stable, candidate = versions
    with store.write() as session:
        began = rollout.current(session).created_at  # type: ignore[union-attr]
        serve(session, "ann", stable, 0.25, candidate=False, thumbs=[UP], created_at=began - timedelta(seconds=1))
        serve(session, "bob", stable, 0.0, candidate=False, thumbs=[UP])  # the candidate was not held
        serve(session, "cem", stable, 0.25, candidate=False, thumbs=[UP], source="import")
        serve(session, "dan", "v9-00000009", 0.25, candidate=True, thumbs=[UP])
        serve(session, "eve", candidate, 0.25, candidate=True, thumbs=[UP], mixed_versions=[stable, candidate])
        compare(session, "fay", stable, stable, Choice.LEFT)
        compare(session, "gus", stable, candidate, None)
        compare(session, "hal", stable, candidate, Choice.LEFT, source="import")
        compare(session, "ida", stable, candidate, Choice.LEFT, created_at=began - timedelta(seconds=1))
    found = gathered(store)
    assert list(found.served) == [Served("eve", True, 0.25, 0)], "served, but by two policies"
    assert list(found.compared) == []
    with store.write() as session:
        rollout.advance(session, "ada", share=1.0)
        serve(session, "eve", candidate, 1.0, candidate=True, thumbs=[DOWN])
        serve(session, "ann", stable, 0.0, candidate=False, thumbs=[UP])  # a replica that does not hold it yet
    assert list(gathered(store).served) == [Served("eve", True, 0.25, 0), Served("eve", True, 1.0, 1, down=1)]


def test_choices_are_seen_from_the_candidates_side(store: Store, versions: tuple[str, str]) -> None:
    stable, candidate = versions
    with store.write() as session:
        for left, right, choice in (
            (candidate, stable, Choice.LEFT),
            (stable, candidate, Choice.RIGHT),
            (stable, candidate, Choice.LEFT),
            (candidate, stable, Choice.TIE),
            (stable, candidate, Choice.BOTH_BAD),
        ):
            compare(session, "ann", left, right, choice)
        compare(session, "bob", candidate, stable, Choice.RIGHT)
    found = gathered(store)
    assert list(found.compared) == [Compared("ann", won=2, lost=1, level=2), Compared("bob", won=0, lost=1, level=0)]
    assert found.step_votes == 6
    with store.write() as session:
        rollout.advance(session, "ada", share=0.6)
    assert gathered(store).step_votes == 0


def test_a_hold_is_part_of_it_and_time_counts_from_the_last_event(store: Store, versions: tuple[str, str]) -> None:
    def minutes(session: Session) -> float:
        row = rollout.current(session)
        assert row is not None
        return gather(session, row, at=rollout.step_began(session, row) + timedelta(minutes=90)).minutes

    with store.write() as session:
        assert minutes(session) == pytest.approx(90)
        rollout.hold(session, "ada", "lunch")
    found = gathered(store)
    assert found.held == "held by ada: lunch"
    with store.write() as session:
        assert minutes(session) < 90, "from the hold, not from the step"
        rollout.resume(session, "ada")
    assert gathered(store).held == ""
    assert gathered(store).last_event_id > found.last_event_id
