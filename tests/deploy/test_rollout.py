"""The rollout's state machine, step by step and by a machine that tries every order, on both databases."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlmodel import Session, col, func, select

from deploy import errors, matchups, rollout
from deploy.audit import audit
from deploy.rollout import STEPS, TRANSITIONS, UNDER_WAY, Action
from feedback.schema import PolicyKind, PolicyState, Rollout, RolloutEvent, RolloutState
from feedback.settings import Settings
from feedback.store import Store, open_store
from tests.deploy.rows import add_policy


@pytest.fixture
def versions(store: Store) -> list[str]:
    """v0 a base, v1 and v2 adapters on it, v3 a full checkpoint, v4 an adapter on v3, v5 refused, v6 a candidate."""
    with store.write() as session:
        base = add_policy(session, 0, PolicyKind.BASE)
        full = "v3-00000003"
        return [
            base,
            add_policy(session, 1),
            add_policy(session, 2),
            add_policy(session, 3, PolicyKind.FULL),
            add_policy(session, 4, base=full),
            add_policy(session, 5, state=PolicyState.REFUSED),
            add_policy(session, 6, state=PolicyState.CANDIDATE),
        ]


def in_one(store: Store, act: Callable[[Session], Any]) -> Any:
    with store.write() as session:
        return act(session)


def now_wanted(store: Store) -> rollout.Wanted:
    with store.read() as session:
        return rollout.wanted(session)


def test_an_adapter_may_be_folded_while_nothing_else_is_wanted(store: Store, versions: list[str]) -> None:
    base, first, second = versions[:3]

    def foldable() -> str | None:
        return now_wanted(store).foldable

    assert foldable() is None, "the base serves"
    in_one(store, lambda session: rollout.start(session, first, 1.0))
    assert foldable() is None, "a candidate, whoever meets it"
    in_one(store, rollout.promote)
    assert foldable() == first
    wanted = now_wanted(store)
    assert (wanted.needed(base), wanted.needed(first), wanted.needed(None)) == ({base, first}, {first}, {base, first})
    for pair, answer in (((first, first), first), ((first, base), None), ((base, base), None), ((None, None), first)):
        in_one(store, lambda session, pair=pair: matchups.choose(session, *pair, "operator"))
        assert foldable() == answer, pair
    in_one(store, lambda session: matchups.choose(session, None, None, "operator", automatic=True))
    assert foldable() is None, "pairs are drawn from the base too"
    in_one(store, lambda session: matchups.choose(session, None, None, "operator"))
    in_one(store, lambda session: rollout.start(session, second, shadow=True))
    assert foldable() is None
    assert now_wanted(store).needed(first) == {base, first, second}
    in_one(store, rollout.promote)
    assert foldable() == second


def test_without_a_base_nothing_is_wanted(store: Store) -> None:
    with store.read() as session, pytest.raises(errors.NoBase):
        rollout.wanted(session)


def test_the_base_serves_until_something_is_rolled_out(store: Store, versions: list[str]) -> None:
    wanted = now_wanted(store)
    assert (wanted.stable, wanted.candidate, wanted.share, wanted.base) == (versions[0], None, 0.0, versions[0])
    assert wanted.adapters == []
    assert wanted.policies[versions[0]].kind is PolicyKind.BASE


def test_an_adapter_takes_every_step_and_is_promoted(store: Store, versions: list[str]) -> None:
    in_one(store, lambda s: rollout.start(s, versions[1], None, "ada"))
    shares, salts = [], set()
    while (wanted := now_wanted(store)).candidate is not None:
        assert wanted.stable == versions[0]
        assert wanted.base == versions[0]
        assert wanted.adapters == [versions[1]]
        shares.append(wanted.share)
        salts.add(wanted.salt)
        in_one(store, lambda s: rollout.advance(s, "ada", "looks well"))
    assert tuple(shares) == STEPS
    assert len(salts) == 1, "users stay where they were assigned"
    assert (wanted.stable, wanted.share) == (versions[1], 0.0)
    assert wanted.adapters == [versions[1]]
    with store.read() as session:
        events = rollout.events(session)
    assert [(event.from_state, event.to_state, event.share) for event, _ in reversed(events)] == [
        (None, "canary", 0.05),
        ("canary", "canary", 0.25),
        ("canary", "canary", 0.5),
        ("canary", "canary", 1.0),
        ("canary", "promoted", 1.0),
    ]
    assert {event.actor for event, _ in events} == {"ada"}


def test_the_second_candidate_rides_beside_the_first(store: Store, versions: list[str]) -> None:
    in_one(store, lambda s: (rollout.start(s, versions[1], 1.0, "ada"), rollout.promote(s, "ada")))
    in_one(store, lambda s: rollout.start(s, versions[2], 0.3, "ada"))
    wanted = now_wanted(store)
    assert (wanted.stable, wanted.candidate, wanted.share) == (versions[1], versions[2], 0.3)
    assert sorted(wanted.adapters) == versions[1:3]


def test_rollback_returns_to_the_one_before_and_again_to_the_one_before_that(store: Store, versions: list[str]) -> None:
    for version in versions[1:3]:
        in_one(store, lambda s, v=version: (rollout.start(s, v, 1.0, "ada"), rollout.promote(s, "ada")))
    assert now_wanted(store).stable == versions[2]
    in_one(store, lambda s: rollout.rollback(s, "ada", "complaints"))
    assert now_wanted(store).stable == versions[1]
    in_one(store, lambda s: rollout.rollback(s, "ada", "more complaints"))
    assert now_wanted(store).stable == versions[0]
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="there is no rollout to rollback"):
        rollout.rollback(session, "ada")
    with store.read() as session:
        reasons = [event.reason for event, _ in rollout.events(session) if event.to_state == "rolled_back"]
    assert reasons == ["more complaints", "complaints"]


def test_a_canary_rolled_back_leaves_the_stable_one_and_may_come_again(store: Store, versions: list[str]) -> None:
    in_one(store, lambda s: rollout.start(s, versions[1], 0.5, "ada"))
    first_salt = now_wanted(store).salt
    in_one(store, lambda s: rollout.rollback(s, "ada", "slow"))
    assert (now_wanted(store).stable, now_wanted(store).candidate) == (versions[0], None)
    in_one(store, lambda s: rollout.start(s, versions[1], 0.5, "ada"))
    assert now_wanted(store).salt != first_salt, "other users take the risk the next time"


def test_a_full_checkpoint_goes_to_everyone_at_once_and_swaps_back(store: Store, versions: list[str]) -> None:
    base, full, on_full = versions[0], versions[3], versions[4]
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="start it at share 1"):
        rollout.start(session, full, 0.05, "ada")
    in_one(store, lambda s: rollout.start(s, full, None, "ada"))
    wanted = now_wanted(store)
    assert (wanted.candidate, wanted.share, wanted.base, wanted.adapters) == (full, 1.0, full, [])
    with store.read() as session:
        assert rollout.plan_rollback(session).swaps_base
    in_one(store, lambda s: rollout.promote(s, "ada"))
    in_one(store, lambda s: rollout.start(s, on_full, None, "ada"))
    wanted = now_wanted(store)
    assert (wanted.stable, wanted.candidate, wanted.share, wanted.base) == (full, on_full, STEPS[0], full)
    assert wanted.adapters == [on_full]
    in_one(store, lambda s: (rollout.rollback(s, "ada"), rollout.rollback(s, "ada")))
    assert (now_wanted(store).stable, now_wanted(store).base) == (base, base)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_is_a_share(store: Store, versions: list[str], share: float) -> None:
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="the share must be"):
        rollout.start(session, versions[1], share, "ada")


def test_only_accepted_policies_meet_users_unless_forced_with_a_reason(store: Store, versions: list[str]) -> None:
    for version, says in ((versions[5], "It is too far away."), (versions[6], "is candidate")):
        with store.write() as session, pytest.raises(errors.RolloutRefused, match=says):
            rollout.start(session, version, 0.1, "ada")
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="needs a reason"):
        rollout.start(session, versions[5], 0.1, "ada", force=True, reason=" ")
    in_one(store, lambda s: rollout.start(s, versions[5], 0.1, "ada", force=True, reason="a demonstration"))
    with store.read() as session:
        [(event, about)] = rollout.events(session)
    assert event.reason == about.reason == "forced past the gate: a demonstration"
    with store.write() as session, pytest.raises(errors.UnknownPolicy, match="kudos policy list"):
        rollout.start(session, "v99-00000000", 0.1, "ada")


def test_one_canary_at_a_time(store: Store, versions: list[str]) -> None:
    in_one(store, lambda s: rollout.start(s, versions[1], 0.1, "ada"))
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="is in canary at 10%"):
        rollout.start(session, versions[2], 0.1, "bob")
    in_one(store, lambda s: rollout.promote(s, "ada"))
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="serves everyone already"):
        rollout.start(session, versions[1], 0.1, "bob")


def test_two_operators_start_at_the_same_moment(store: Store, versions: list[str]) -> None:
    barrier, outcomes = threading.Barrier(2), []

    def operator(version: str) -> None:
        barrier.wait()
        try:
            in_one(store, lambda s: rollout.start(s, version, 0.1, "ada"))
            outcomes.append("started")
        except errors.RolloutRefused:
            outcomes.append("refused")

    threads = [threading.Thread(target=operator, args=(version,)) for version in versions[1:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["refused", "started"]


def test_advance_only_goes_up(store: Store, versions: list[str]) -> None:
    in_one(store, lambda s: rollout.start(s, versions[1], 0.3, "ada"))
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="advance goes up"):
        rollout.advance(session, "ada", share=0.3)
    assert in_one(store, lambda s: rollout.advance(s, "ada")).share == 0.5
    assert in_one(store, lambda s: rollout.advance(s, "ada", share=0.7)).share == 0.7


def test_a_hold_lasts_until_somebody_resumes_or_advances(store: Store, versions: list[str]) -> None:
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="there is no rollout to hold"):
        rollout.hold(session, "ada")
    in_one(store, lambda s: rollout.start(s, versions[1], 0.1, "ada"))
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="is not held"):
        rollout.resume(session, "ada")
    held = in_one(store, lambda s: rollout.hold(s, "ada", "lunch"))
    assert (held.state, held.share, now_wanted(store).share) == ("canary", 0.1, 0.1)
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="is held already, at 10%"):
        rollout.hold(session, "bob")
    in_one(store, lambda s: rollout.resume(s, "bob"))
    in_one(store, lambda s: rollout.hold(s, "ada"))
    assert in_one(store, lambda s: rollout.advance(s, "ada")).share == 0.25
    with store.read() as session:
        assert not rollout.is_held(session, rollout.current(session))  # type: ignore[arg-type]
        actions = [(event.action, event.share) for event, _ in reversed(rollout.events(session))]
    assert actions == [("start", 0.1), ("hold", 0.1), ("resume", 0.1), ("hold", 0.1), ("advance", 0.25)]
    in_one(store, lambda s: rollout.promote(s, "ada"))
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="promoted cannot hold"):
        rollout.hold(session, "ada")


def test_matchups(store: Store, versions: list[str]) -> None:
    base, first, second, full = versions[:4]
    assert now_wanted(store).matchup is None
    in_one(store, lambda s: matchups.choose(s, first, second, "ada"))
    wanted = now_wanted(store)
    assert wanted.matchup == (first, second)
    assert sorted(wanted.adapters) == [first, second]
    in_one(store, lambda s: matchups.choose(s, None, second, "ada"))
    assert now_wanted(store).matchup == (base, second), "an empty side is what serves"
    in_one(store, lambda s: rollout.start(s, full, None, "ada"))
    assert now_wanted(store).matchup is None, "adapters on another base wait until it returns"
    in_one(store, lambda s: (rollout.rollback(s, "ada"), matchups.choose(s, None, None, "ada")))
    assert now_wanted(store).matchup is None
    with store.write() as session, pytest.raises(errors.UnknownPolicy):
        matchups.choose(session, "v99-00000000", None, "ada")


def test_an_automatic_matchup_names_what_is_drawn_from(store: Store, versions: list[str]) -> None:
    base, first, second, full = versions[:4]
    in_one(store, lambda s: matchups.choose(s, None, None, "ada", automatic=True))
    assert now_wanted(store).pool == (base,)
    in_one(store, lambda s: rollout.start(s, first, 0.25, "ada"))
    assert now_wanted(store).pool == (base, first), "what replicas hold anyhow"
    in_one(store, lambda s: matchups.choose(s, None, None, "ada", automatic=True, versions=[second, full, base]))
    wanted = now_wanted(store)
    assert wanted.pool == (second, base), "a policy on other weights waits until they are there"
    assert sorted(wanted.adapters) == [first, second]
    for bad in (
        {"first": first, "automatic": True},
        {"versions": [first, base]},
        {"automatic": True, "versions": [base]},
    ):
        with store.write() as session, pytest.raises(errors.RolloutRefused):
            matchups.choose(session, bad.pop("first", None), None, "ada", **bad)  # type: ignore[arg-type]
    in_one(store, lambda s: matchups.choose(s, None, None, "ada"))
    assert now_wanted(store).pool == ()


def test_in_shadow_a_candidate_is_held_and_met_by_nobody(store: Store, versions: list[str]) -> None:
    base, first, second, full = versions[:4]
    in_one(store, lambda s: rollout.start(s, first, None, "ada", shadow=True))
    wanted = now_wanted(store)
    assert (wanted.shadow, wanted.candidate, wanted.share, wanted.adapters) == (first, None, 0.0, [first])
    in_one(store, lambda s: matchups.choose(s, None, None, "ada", automatic=True))
    assert now_wanted(store).pool == (base,), "no comparison shows it either"
    with store.write() as session, pytest.raises(errors.RolloutRefused, match="is in shadow; promote it or roll it"):
        rollout.start(session, second, 0.1, "ada")
    in_one(store, lambda s: rollout.hold(s, "ada"))
    with store.read() as session:
        assert rollout.is_held(session, rollout.current(session))  # type: ignore[arg-type]
    in_one(store, lambda s: rollout.advance(s, "ada"))
    wanted = now_wanted(store)
    assert (wanted.shadow, wanted.candidate, wanted.share) == (None, first, STEPS[0])
    in_one(store, lambda s: rollout.rollback(s, "ada"))
    for version, share, why in ((full, None, "it has no shadow"), (first, 0.5, "leave one of the two out")):
        with store.write() as session, pytest.raises(errors.RolloutRefused, match=why):
            rollout.start(session, version, share, "ada", shadow=True)
    with store.read() as session:
        assert audit(session).broken is None
        assert [event.action for event, _ in reversed(rollout.events(session))] == [
            "shadow", "hold", "advance", "rollback",
        ]  # fmt: skip


def test_the_table_has_no_way_out_of_rolled_back() -> None:
    assert {state for state, _ in TRANSITIONS} == {None, *UNDER_WAY, RolloutState.PROMOTED}
    assert {action for _, action in TRANSITIONS} == set(Action)


class Operators(RuleBasedStateMachine):
    """Any order of actions, against a model that is a stack of promoted policies and perhaps a canary."""

    home: Path

    @initialize()
    def open(self) -> None:
        self.store = open_store(Settings(home=self.home / f"{id(self)}-{len(list(self.home.iterdir()))}"))
        with self.store.write() as session:
            self.base = add_policy(session, 0, PolicyKind.BASE)
            self.adapters = [add_policy(session, number) for number in (1, 2, 3)]
        self.stack, self.canary, self.events = [self.base], None, 0
        self.share, self.held = 0.0, False

    def teardown(self) -> None:
        self.store.close()

    def attempt(self, allowed: bool, act: Callable[[Session], Rollout]) -> Rollout | None:
        if not allowed:
            with self.store.write() as session, pytest.raises(errors.RolloutRefused):
                act(session)
            return None
        self.events += 1
        with self.store.write() as session:
            return act(session)

    @rule(index=st.integers(0, 3), share=st.none() | st.floats(0.01, 1.0))
    def start(self, index: int, share: float | None) -> None:
        version = [self.base, *self.adapters][index]
        allowed = self.canary is None and version != self.stack[-1]
        if self.attempt(allowed, lambda s: rollout.start(s, version, share, "m")):
            self.canary, self.share, self.held = version, share or STEPS[0], False

    @rule(index=st.integers(0, 3))
    def shadow(self, index: int) -> None:
        version = [self.base, *self.adapters][index]
        allowed = self.canary is None and version != self.stack[-1]
        if self.attempt(allowed, lambda s: rollout.start(s, version, None, "m", shadow=True)):
            self.canary, self.share, self.held = version, 0.0, False

    @rule()
    def advance(self) -> None:
        done = self.attempt(self.canary is not None, lambda s: rollout.advance(s, "m"))
        if done and self.share >= 1.0:
            self._promoted()
        elif done:
            assert done.share > self.share
            self.share, self.held = done.share, False

    @rule()
    def hold(self) -> None:
        if self.attempt(self.canary is not None and not self.held, lambda s: rollout.hold(s, "m")):
            self.held = True

    @rule()
    def resume(self) -> None:
        if self.attempt(self.held, lambda s: rollout.resume(s, "m")):
            self.held = False

    @rule()
    def promote(self) -> None:
        if self.attempt(self.canary is not None, lambda s: rollout.promote(s, "m")):
            self._promoted()

    def _promoted(self) -> None:
        assert self.canary is not None
        self.stack.append(self.canary)
        self.canary, self.share, self.held = None, 0.0, False

    @rule()
    def rollback(self) -> None:
        if self.attempt(self.canary is not None or len(self.stack) > 1, lambda s: rollout.rollback(s, "m")):
            if self.canary is None:
                self.stack.pop()
            self.canary, self.share, self.held = None, 0.0, False

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def wanted_is_the_model(self) -> None:
        with self.store.read() as session:
            wanted = rollout.wanted(session)
            canaries = session.exec(select(func.count()).where(col(Rollout.state).in_(UNDER_WAY))).one()
            events = session.exec(select(func.count()).select_from(RolloutEvent)).one()
            row = rollout.current(session)
            held = row is not None and rollout.is_held(session, row)
            chain = audit(session)
        assert (wanted.stable, wanted.candidate or wanted.shadow) == (self.stack[-1], self.canary)
        assert (wanted.share, wanted.shadow is not None) == (self.share, self.canary is not None and not self.share)
        assert set(wanted.adapters) == {self.stack[-1], self.canary} - {None, self.base}
        assert canaries == (self.canary is not None)
        assert events == self.events == chain.events
        assert held == self.held
        assert chain.broken is None


def test_any_order_of_actions(tmp_path: Path) -> None:
    Operators.home = tmp_path
    run_state_machine_as_test(
        Operators,
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
