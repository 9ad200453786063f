"""The controller on real databases: it goes back by itself, goes on where it may, and never twice."""

import threading
from datetime import timedelta

import pytest
from sqlmodel import col, select

from deploy import controller, rollout
from deploy.controller import Look, look
from deploy.decision import Verdict
from deploy.settings import RolloutSettings
from feedback.schema import PolicyKind, ReplyState, RolloutEvent, Thumb
from feedback.store import Store
from tests.deploy.rows import add_policy, serve, shadow

BY_HAND = RolloutSettings(min_minutes=0, min_votes=10, net_votes_margin=0.5)
AUTOMATIC = RolloutSettings(min_minutes=0, min_votes=10, net_votes_margin=0.5, automatic=True)


@pytest.fixture
def versions(store: Store) -> tuple[str, str]:
    """The stable policy and the candidate, which 25 % meet."""
    with store.write() as session:
        stable, candidate = add_policy(session, 0, PolicyKind.BASE), add_policy(session, 1)
        rollout.start(session, candidate, 0.25, "ada")
    return stable, candidate


def crowd(store: Store, versions: tuple[str, str], share: float, candidates: Thumb) -> None:
    """The share's own numbers of users, with a vote each; the stable policy's users like what they see."""
    stable, candidate = versions
    with store.write() as session:
        for user in range(30):
            serve(session, f"c{user}", candidate, share, candidate=True, thumbs=[candidates])
        for user in range(round(30 * (1 - share) / share)):
            serve(session, f"s{user}", stable, share, candidate=False, thumbs=[Thumb.UP])


def shares(store: Store) -> list[float]:
    with store.read() as session:
        return [event.share for event in session.exec(select(RolloutEvent).order_by(col(RolloutEvent.id)))]


def seen(found: Look | None) -> Look:
    assert found is not None
    return found


def test_nothing_in_canary_is_nothing_to_see(store: Store, versions: tuple[str, str]) -> None:
    with store.write() as session:
        rollout.promote(session, "ada")
    assert look(store, AUTOMATIC) is None
    assert len(shares(store)) == 2


def test_without_evidence_it_holds_however_long(store: Store, versions: tuple[str, str]) -> None:
    for _ in range(3):
        found = seen(look(store, AUTOMATIC))
        assert (found.decision.verdict, found.acted) == (Verdict.HOLD, False)
    assert shares(store) == [0.25]


def test_harm_goes_back_by_itself_even_where_approval_is_by_hand(store: Store, versions: tuple[str, str]) -> None:
    crowd(store, versions, 0.25, Thumb.DOWN)
    dry = seen(look(store, BY_HAND, dry_run=True))
    assert (dry.decision.verdict, dry.acted, shares(store)) == (Verdict.ROLL_BACK, False, [0.25])
    found = seen(look(store, BY_HAND))
    assert found.acted
    with store.read() as session:
        assert rollout.wanted(session).candidate is None
        [(event, row), _] = rollout.events(session)
    assert (event.actor, event.action, event.reason) == ("controller", "rollback", found.decision.reason)
    assert "net votes per reply -2.000 is worse than 0" in row.reason
    assert look(store, BY_HAND) is None


def test_it_goes_on_only_where_that_is_automatic_and_each_step_needs_its_own_votes(
    store: Store, versions: tuple[str, str]
) -> None:
    crowd(store, versions, 0.25, Thumb.UP)
    by_hand = seen(look(store, BY_HAND))
    assert (by_hand.decision.verdict, by_hand.acted, shares(store)) == (Verdict.ADVANCE, False, [0.25])
    first = seen(look(store, AUTOMATIC))
    assert (first.acted, shares(store)) == (True, [0.25, 0.5])
    for _ in range(3):  # a controller that has just been started, too, knows nothing but what is in the database
        again = seen(look(store, AUTOMATIC))
        assert (again.decision.verdict, again.acted) == (Verdict.HOLD, False)
        assert "0 of 10 votes on this step" in again.decision.reason
    crowd(store, versions, 0.5, Thumb.UP)
    assert seen(look(store, AUTOMATIC)).acted
    assert shares(store) == [0.25, 0.5, 1.0]
    crowd(store, versions, 1.0, Thumb.UP)
    assert seen(look(store, AUTOMATIC)).decision.verdict is Verdict.PROMOTE
    with store.read() as session:
        assert rollout.wanted(session).stable == versions[1]
        assert {event.actor for event, _ in rollout.events(session, 3)} == {"controller"}


@pytest.fixture
def in_shadow(store: Store) -> tuple[str, str]:
    with store.write() as session:
        stable, candidate = add_policy(session, 0, PolicyKind.BASE), add_policy(session, 1)
        rollout.start(session, candidate, None, "ada", shadow=True)
    return stable, candidate


def shadows(store: Store, versions: tuple[str, str], users: int, **fields: object) -> None:
    with store.write() as session:
        for user in range(users):
            shadow(session, f"u{user}", *versions, **fields)  # type: ignore[arg-type]


def test_from_shadow_it_goes_on_to_a_few_users_by_the_same_rules(store: Store, in_shadow: tuple[str, str]) -> None:
    plan = AUTOMATIC.model_copy(update={"shadow_replies": 40})
    found = seen(look(store, plan))
    assert found.decision.reason == (
        "0 of 40 replies in shadow; nothing to compare: 0 of 30 users were answered in shadow too"
    )
    shadows(store, in_shadow, 35)
    assert "35 of 40 replies in shadow" in seen(look(store, plan)).decision.reason
    shadows(store, in_shadow, 5)
    by_hand = seen(look(store, BY_HAND.model_copy(update={"shadow_replies": 40})))
    assert (by_hand.decision.verdict, by_hand.acted, shares(store)) == (Verdict.ADVANCE, False, [0.0])
    assert seen(look(store, plan)).acted
    assert shares(store) == [0.0, plan.steps[0]]
    with store.read() as session:
        assert rollout.wanted(session).candidate == in_shadow[1]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"state": ReplyState.FAILED}, "users who met an error"),
        ({"tokens": 0}, "length of replies is 0.10 times"),
        ({"refused": True}, "share of refusals is"),
    ],
)
def test_harm_in_shadow_goes_back_before_anybody_meets_it(
    store: Store, in_shadow: tuple[str, str], fields: dict[str, object], why: str
) -> None:
    shadows(store, in_shadow, 120, **fields)
    found = seen(look(store, BY_HAND))
    assert (found.decision.verdict, found.acted) == (Verdict.ROLL_BACK, True)
    assert why in found.decision.reason
    assert shares(store) == [0.0, 0.0]
    with store.read() as session:
        assert rollout.wanted(session).shadow is None


def test_the_minimum_time_counts_from_the_last_event(store: Store, versions: tuple[str, str]) -> None:
    patient = AUTOMATIC.model_copy(update={"min_minutes": 30.0})
    crowd(store, versions, 0.25, Thumb.UP)
    assert not seen(look(store, patient)).acted
    with store.write() as session:
        event = session.exec(select(RolloutEvent)).one()
        event.created_at -= timedelta(minutes=31)
        session.add(event)
    assert seen(look(store, patient)).acted
    crowd(store, versions, 0.5, Thumb.UP)
    found = seen(look(store, patient))
    assert not found.acted
    assert "0 of 30 minutes" in found.decision.reason


def test_a_hold_stops_the_way_up_and_not_the_way_back(store: Store, versions: tuple[str, str]) -> None:
    crowd(store, versions, 0.25, Thumb.UP)
    with store.write() as session:
        rollout.hold(session, "ada", "lunch")
    found = seen(look(store, AUTOMATIC))
    assert (found.decision.verdict, found.decision.reason) == (Verdict.HOLD, "held by ada: lunch")
    with store.write() as session:
        rollout.resume(session, "ada")
    assert seen(look(store, AUTOMATIC)).acted
    with store.write() as session:
        rollout.hold(session, "ada")
    crowd(store, versions, 0.5, Thumb.DOWN)
    assert seen(look(store, AUTOMATIC)).decision.verdict is Verdict.ROLL_BACK
    assert shares(store)[-1] == 0.0


def test_whoever_was_quicker_is_not_overruled(store: Store, versions: tuple[str, str]) -> None:
    crowd(store, versions, 0.25, Thumb.UP)
    with store.read() as session:
        found = seen(controller.assess(session, AUTOMATIC))
    with store.write() as session:
        rollout.hold(session, "ada", "not yet")
    with store.write() as session:
        assert not controller.carry_out(session, found)
    assert shares(store) == [0.25, 0.25]


def test_two_controllers_raise_a_share_once(store: Store, versions: tuple[str, str]) -> None:
    crowd(store, versions, 0.25, Thumb.UP)
    with store.read() as session:
        found = seen(controller.assess(session, AUTOMATIC))
    barrier, acted = threading.Barrier(2), []

    def act() -> None:
        barrier.wait()
        with store.write() as session:
            acted.append(controller.carry_out(session, found))

    threads = [threading.Thread(target=act) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(acted) == [False, True]
    assert shares(store) == [0.25, 0.5]


def test_a_controller_that_dies_before_the_end_has_done_nothing(store: Store, versions: tuple[str, str]) -> None:
    crowd(store, versions, 0.25, Thumb.UP)
    with store.read() as session:
        found = seen(controller.assess(session, AUTOMATIC))

    def die_in_the_middle() -> None:
        with store.write() as session:
            assert controller.carry_out(session, found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die_in_the_middle()
    assert shares(store) == [0.25]
    assert seen(look(store, AUTOMATIC)).acted
    assert shares(store) == [0.25, 0.5]
