"""The rollout: which policy serves whom. A state machine over rows that every replica reads and none is told about.

The wanted state follows from the newest rollout that was not rolled back: in canary, its candidate takes `share` of
users and its stable policy the rest; promoted, its candidate is stable; none, the newest base is. Rolling a promoted
policy back therefore returns to the one before it, and again to the one before that.

One engine holds one set of base weights. Adapters share it, so their share grows in steps; a candidate that needs other
base weights (a full checkpoint, or an adapter on one) cannot serve beside the stable policy and goes straight to share
1, still as a canary until it is promoted. A promoted adapter stays an adapter here; a replica may fold it (`foldable`).

Every transition appends an event to a chain of hashes (`deploy.audit`). A hold is an event as well, and whether a
rollout is held follows from its newest one: whatever is decided next ends it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from deploy import matchups
from deploy.audit import event_hash, head
from deploy.errors import NoBase, RolloutRefused
from deploy.locking import alone
from deploy.policies import base_of, get
from feedback.schema import Policy, PolicyKind, PolicyState, Rollout, RolloutEvent, RolloutState, now

STEPS = (0.05, 0.25, 0.5, 1.0)


class Action(StrEnum):
    SHADOW = "shadow"  # a start that nobody meets yet
    START = "start"
    ADVANCE = "advance"  # to a larger share
    HOLD = "hold"  # nobody but a person takes the next step
    RESUME = "resume"  # the end of a hold
    PROMOTE = "promote"
    ROLLBACK = "rollback"


TRANSITIONS: dict[tuple[RolloutState | None, Action], RolloutState] = {
    (None, Action.SHADOW): RolloutState.SHADOW,
    (RolloutState.SHADOW, Action.ADVANCE): RolloutState.CANARY,
    (RolloutState.SHADOW, Action.HOLD): RolloutState.SHADOW,
    (RolloutState.SHADOW, Action.RESUME): RolloutState.SHADOW,
    (RolloutState.SHADOW, Action.PROMOTE): RolloutState.PROMOTED,
    (RolloutState.SHADOW, Action.ROLLBACK): RolloutState.ROLLED_BACK,
    (None, Action.START): RolloutState.CANARY,
    (RolloutState.CANARY, Action.ADVANCE): RolloutState.CANARY,
    (RolloutState.CANARY, Action.HOLD): RolloutState.CANARY,
    (RolloutState.CANARY, Action.RESUME): RolloutState.CANARY,
    (RolloutState.CANARY, Action.PROMOTE): RolloutState.PROMOTED,
    (RolloutState.CANARY, Action.ROLLBACK): RolloutState.ROLLED_BACK,
    (RolloutState.PROMOTED, Action.ROLLBACK): RolloutState.ROLLED_BACK,
}


UNDER_WAY = (RolloutState.SHADOW, RolloutState.CANARY)


@dataclass(frozen=True)
class WantedPolicy:
    version: str
    number: int
    kind: PolicyKind
    path: str  # `policies.folder_of`
    digest: str
    base: str  # the version whose weights it needs


@dataclass(frozen=True)
class Wanted:
    """What every replica should hold, and which policy each user meets."""

    stable: str
    candidate: str | None
    share: float  # of users, for the candidate
    salt: str  # of the hash that assigns users
    matchup: tuple[str, str] | None  # None: comparisons draw from the serving policy alone
    base: str  # the version whose weights the engine should hold
    policies: dict[str, WantedPolicy] = field(default_factory=dict)  # every version named here
    shadow: str | None = None  # a candidate that nobody meets, which answers in the background
    pool: tuple[str, ...] = ()  # comparisons draw pairs from these by what is known of them: see deploy.draws

    @property
    def adapters(self) -> list[str]:
        """Versions to hold as adapters on `base`; the base itself needs none."""
        return [
            version for version, policy in self.policies.items() if version != self.base and policy.base == self.base
        ]

    @property
    def foldable(self) -> str | None:
        """The adapter that serves everybody, where nothing else is wanted beside it: no candidate, no shadow, no
        other side of a comparison. A replica may fold it into the base's weights."""
        alone = self.adapters == [self.stable] and self.policies.keys() <= {self.base, self.stable}
        compared = {*(self.matchup or ()), *self.pool}
        return self.stable if alone and self.candidate is None and compared <= {self.stable} else None

    def needed(self, weights: str | None) -> set[str]:
        """What a replica with these base weights (a policy's version) holds when it is in step."""
        if weights is not None and weights == self.foldable:
            return {weights}
        return {self.base, *self.adapters}


@dataclass(frozen=True)
class Plan:
    """What an action would do, for `--dry-run` and for people."""

    action: Action
    candidate: str
    stable: str
    from_share: float
    to_share: float
    to_state: RolloutState
    swaps_base: bool


def wanted(session: Session) -> Wanted:
    """Raises NoBase until `policies.register_base` has been called once."""
    rollout = current(session)
    stable, candidate, share, salt = _stable_version(session, rollout), None, 0.0, ""
    if rollout is not None and rollout.state == RolloutState.CANARY:
        candidate, share, salt = rollout.candidate_version, rollout.share, rollout.salt
    shadow = rollout.candidate_version if rollout is not None and rollout.state == RolloutState.SHADOW else None
    rows = {version: get(session, version) for version in (stable, candidate, shadow) if version is not None}
    base = base_of(rows[stable])
    if candidate is not None and share >= 1.0:
        base = base_of(rows[candidate])
    newest, met = matchups.newest(session), [version for version in rows if version != shadow]
    pair, pool = matchups.pair_of(session, newest, stable, base), matchups.pool_of(session, newest, met, base)
    for version in (base, *(pair or ()), *pool):
        rows.setdefault(version, get(session, version))
    held = {version: _wanted_policy(policy) for version, policy in rows.items()}
    return Wanted(stable, candidate, share, salt, pair, base, held, shadow, pool)


def current(session: Session) -> Rollout | None:
    """The newest rollout that was not rolled back."""
    return session.exec(
        select(Rollout).where(Rollout.state != RolloutState.ROLLED_BACK).order_by(col(Rollout.id).desc())
    ).first()


def events(session: Session, limit: int = 20) -> Sequence[tuple[RolloutEvent, Rollout]]:
    """Newest first."""
    return session.exec(
        select(RolloutEvent, Rollout)
        .where(RolloutEvent.rollout_id == Rollout.id)
        .order_by(col(RolloutEvent.id).desc())
        .limit(limit)
    ).all()


def last_event(session: Session, row: Rollout) -> RolloutEvent:
    return session.exec(_events_of(row).limit(1)).one()


def step_began(session: Session, row: Rollout) -> datetime:
    """When the candidate got the share that it has."""
    took = col(RolloutEvent.action).in_([Action.SHADOW, Action.START, Action.ADVANCE, Action.PROMOTE])
    return session.exec(_events_of(row).where(took).limit(1)).one().created_at


def is_held(session: Session, row: Rollout) -> bool:
    return row.state in UNDER_WAY and last_event(session, row).action == Action.HOLD


def _events_of(row: Rollout) -> SelectOfScalar[RolloutEvent]:
    """Newest first."""
    return select(RolloutEvent).where(RolloutEvent.rollout_id == row.id).order_by(col(RolloutEvent.id).desc())


def start(
    session: Session,
    version: str,
    share: float | None = None,
    actor: str = "operator",
    *,
    reason: str = "",
    force: bool = False,
    shadow: bool = False,
    steps: Sequence[float] = STEPS,
) -> Rollout:
    """Let an accepted policy meet `share` of users. `force` lets one in that the gate has not accepted; say why.

    `shadow`: nobody meets it yet; it answers some prompts in the background. `steps`: the first of them is the share
    where none is named.
    """
    alone(session)
    plan = plan_start(session, version, share, reason=reason, force=force, shadow=shadow, steps=steps)
    forced = force and get(session, version).state != PolicyState.ACCEPTED
    rollout = Rollout(
        state=plan.to_state,
        candidate_version=version,
        stable_version=plan.stable,
        share=plan.to_share,
        salt=secrets.token_hex(8),
        started_by=actor,
        reason=f"forced past the gate: {reason}" if forced else reason,
    )
    session.add(rollout)
    session.flush()
    _append_event(session, rollout, plan.action, None, actor=actor, reason=rollout.reason)
    return rollout


def plan_start(
    session: Session,
    version: str,
    share: float | None = None,
    *,
    reason: str = "",
    force: bool = False,
    shadow: bool = False,
    steps: Sequence[float] = STEPS,
) -> Plan:
    candidate, running = get(session, version), current(session)
    if running is not None and running.state in UNDER_WAY:
        where = "in shadow" if running.state == RolloutState.SHADOW else f"in canary at {running.share:.0%}"
        raise RolloutRefused(f"{running.candidate_version} is {where}; promote it or roll it back first")
    stable = get(session, _stable_version(session, running))
    if candidate.version == stable.version:
        raise RolloutRefused(f"{version} is the policy that serves everyone already")
    if candidate.state != PolicyState.ACCEPTED and not force:
        why = f": {candidate.refusals[0]}" if candidate.refusals else ""
        raise RolloutRefused(f"{version} is {candidate.state}, and only accepted policies meet users{why}")
    if force and not reason.strip():
        raise RolloutRefused("a forced rollout needs a reason, which is kept")
    swaps = base_of(candidate) != base_of(stable)
    if shadow:
        return _plan_shadow(version, stable.version, share, swaps=swaps)
    if share is None:
        share = 1.0 if swaps else steps[0]
    if not 0.0 < share <= 1.0:
        raise RolloutRefused(f"the share must be above 0 and at most 1, not {share:g}")
    if swaps and share < 1.0:
        raise RolloutRefused(
            f"{version} needs other base weights than {stable.version}, and one engine cannot hold both: "
            f"start it at share 1, not {share:g}"
        )
    return Plan(Action.START, version, stable.version, 0.0, share, _next_state(None, Action.START), swaps)


def _plan_shadow(version: str, stable: str, share: float | None, *, swaps: bool) -> Plan:
    if share is not None:
        raise RolloutRefused("in shadow nobody meets the candidate, so it has no share: leave one of the two out")
    if swaps:
        raise RolloutRefused(
            f"{version} needs other base weights than {stable}, and one engine cannot hold both: it has no shadow"
        )
    return Plan(Action.SHADOW, version, stable, 0.0, 0.0, _next_state(None, Action.SHADOW), swaps_base=False)


def advance(
    session: Session,
    actor: str = "operator",
    reason: str = "",
    *,
    share: float | None = None,
    steps: Sequence[float] = STEPS,
) -> Rollout:
    """To the next of `steps` (or to `share`, which must be larger); from share 1 to promoted."""
    alone(session)
    return _apply(session, plan_advance(session, share, steps), actor, reason)


def plan_advance(session: Session, share: float | None = None, steps: Sequence[float] = STEPS) -> Plan:
    rollout = _live(session, Action.ADVANCE)
    if share is not None and not rollout.share < share <= 1.0:
        raise RolloutRefused(f"advance goes up: the share is {rollout.share:g}, so it cannot become {share:g}")
    if rollout.share >= 1.0:
        return plan_promote(session)
    following = min((step for step in steps if step > rollout.share), default=1.0)
    return _plan(session, rollout, Action.ADVANCE, share or following)


def promote(session: Session, actor: str = "operator", reason: str = "") -> Rollout:
    """The candidate becomes stable, from whatever share it has."""
    alone(session)
    return _apply(session, plan_promote(session), actor, reason)


def plan_promote(session: Session) -> Plan:
    return _plan(session, _live(session, Action.PROMOTE), Action.PROMOTE, 1.0)


def rollback(session: Session, actor: str = "operator", reason: str = "") -> Rollout:
    """The candidate, in canary or promoted, serves nobody; the policy before it serves everyone."""
    alone(session)
    return _apply(session, plan_rollback(session), actor, reason)


def plan_rollback(session: Session) -> Plan:
    return _plan(session, _live(session, Action.ROLLBACK), Action.ROLLBACK, 0.0)


def hold(session: Session, actor: str = "operator", reason: str = "") -> Rollout:
    """The share stays until a person advances, or resumes. Harm still rolls back."""
    alone(session)
    return _apply(session, plan_hold(session), actor, reason)


def plan_hold(session: Session) -> Plan:
    rollout = _live(session, Action.HOLD)
    if is_held(session, rollout):
        raise RolloutRefused(f"{rollout.candidate_version} is held already, at {rollout.share:.0%}")
    return _plan(session, rollout, Action.HOLD, rollout.share)


def resume(session: Session, actor: str = "operator", reason: str = "") -> Rollout:
    """The end of a hold, at the same share; the step's minimum time begins anew."""
    alone(session)
    return _apply(session, plan_resume(session), actor, reason)


def plan_resume(session: Session) -> Plan:
    rollout = _live(session, Action.RESUME)
    if not is_held(session, rollout):
        raise RolloutRefused(f"{rollout.candidate_version} is not held, so there is nothing to resume")
    return _plan(session, rollout, Action.RESUME, rollout.share)


def _next_state(state: RolloutState | None, action: Action) -> RolloutState:
    try:
        return TRANSITIONS[state, action]
    except KeyError:
        raise RolloutRefused(f"a rollout that is {state or 'not started'} cannot {action}") from None


def _live(session: Session, action: Action) -> Rollout:
    rollout = current(session)
    if rollout is None:
        raise RolloutRefused(f"there is no rollout to {action}: the base serves everyone")
    _next_state(RolloutState(rollout.state), action)
    return rollout


def _plan(session: Session, rollout: Rollout, action: Action, share: float) -> Plan:
    return Plan(
        action=action,
        candidate=rollout.candidate_version,
        stable=rollout.stable_version,
        from_share=rollout.share,
        to_share=share,
        to_state=_next_state(RolloutState(rollout.state), action),
        swaps_base=action is Action.ROLLBACK
        and base_of(get(session, rollout.candidate_version)) != base_of(get(session, rollout.stable_version)),
    )


def _apply(session: Session, plan: Plan, actor: str, reason: str) -> Rollout:
    rollout = _live(session, plan.action)
    before = rollout.state
    rollout.state, rollout.share, rollout.updated_at = plan.to_state, plan.to_share, now()
    if reason:
        rollout.reason = reason
    session.add(rollout)
    session.flush()
    _append_event(session, rollout, plan.action, before, actor=actor, reason=reason)
    return rollout


def _append_event(
    session: Session, rollout: Rollout, action: Action, before: str | None, *, actor: str, reason: str
) -> None:
    assert rollout.id is not None  # flushed
    event = RolloutEvent(
        rollout_id=rollout.id,
        action=action,
        from_state=before,
        to_state=rollout.state,
        share=rollout.share,
        actor=actor,
        reason=reason,
    )
    event.hash = event_hash(head(session), event)
    session.add(event)
    session.flush()


def _stable_version(session: Session, rollout: Rollout | None) -> str:
    if rollout is not None:
        return rollout.candidate_version if rollout.state == RolloutState.PROMOTED else rollout.stable_version
    base = session.exec(
        select(Policy).where(Policy.kind == PolicyKind.BASE).order_by(col(Policy.number).desc())
    ).first()
    if base is None:
        raise NoBase("no base is registered yet; the server registers its model when it starts")
    return base.version


def _wanted_policy(policy: Policy) -> WantedPolicy:
    return WantedPolicy(
        version=policy.version,
        number=policy.number,
        kind=PolicyKind(policy.kind),
        path=policy.path,
        digest=policy.digest,
        base=base_of(policy),
    )
