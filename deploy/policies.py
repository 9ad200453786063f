"""The registry: which policies exist, where they lie, what came of them and what they came from.

It reads and writes rows; the folders themselves are `deploy.artifacts`, and which of them serve is `deploy.rollout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import case, func
from sqlmodel import Session, col, select

from deploy.artifacts import Published
from deploy.digests import model_digest
from deploy.errors import NoBase, UnknownPolicy, VersionTaken, WrongBase
from deploy.gate import EvaluationReport, Verdict
from deploy.locking import alone
from feedback.schema import (
    SHADOW,
    Policy,
    PolicyKind,
    PolicyState,
    Reply,
    RewardModel,
    TrainingRun,
    TrainingSample,
)


@dataclass(frozen=True)
class SampleCount:
    kind: str
    split: str
    samples: int


@dataclass(frozen=True)
class Lineage:
    """Both ways: what the policy was made from, and what it has made."""

    policy: Policy
    ancestors: list[Policy]  # parent first, the base last
    children: list[Policy]
    run: TrainingRun | None
    reward_model: RewardModel | None
    samples: list[SampleCount]
    vote_ids: list[int]
    voters: int
    replies: dict[str, int]  # state: how many


def next_number(session: Session) -> int:
    newest = session.exec(select(func.max(Policy.number))).one()
    return 0 if newest is None else newest + 1


def get(session: Session, version: str) -> Policy:
    policy = session.get(Policy, version)
    if policy is None:
        raise UnknownPolicy(f"there is no policy {version!r}; `kudos policy list` names those that exist")
    return policy


def everything(session: Session) -> Sequence[Policy]:
    return session.exec(select(Policy).order_by(col(Policy.number))).all()


def folder_of(policy: Policy, policies_folder: Path) -> Path:
    """A base lies where it was found; all others below the policies folder."""
    return policies_folder / policy.path  # an absolute path on the right wins


def register_base(session: Session, folder: Path) -> Policy:
    """The model that the deployment starts from. The same weights are the same policy, wherever they lie."""
    alone(session)
    folder = folder.absolute()
    digest = model_digest(folder)
    found = session.exec(select(Policy).where(Policy.digest == digest, Policy.kind == PolicyKind.BASE)).first()
    if found is not None:
        if found.path != str(folder):
            found.path = str(folder)
            session.add(found)
            session.flush()
        return found
    number = next_number(session)
    policy = Policy(
        version=f"v{number}-{digest[:8]}",
        number=number,
        kind=PolicyKind.BASE,
        state=PolicyState.ACCEPTED,
        path=str(folder),
        digest=digest,
    )
    session.add(policy)
    session.flush()
    return policy


def register(
    session: Session,
    published: Published,
    *,
    parent: str | None,
    run_id: str | None = None,
    reward_model_id: str | None = None,
    report: EvaluationReport | None = None,
    verdict: Verdict | None = None,
) -> Policy:
    """Make a published folder a row; without a verdict it stays a candidate until `record_verdict`.

    Registering the same folder again changes nothing, so that a resumed run may. Raises VersionTaken when another
    policy has the number, WrongBase when the parent's base is not the one that the manifest names.
    """
    alone(session)
    known = session.get(Policy, published.version)
    if known is not None and known.digest == published.digest:
        return known
    if session.exec(select(Policy).where(Policy.number == published.number)).first() is not None:
        raise VersionTaken(f"policy number {published.number} is taken; publish again with `next_number`")
    manifest = published.manifest
    policy = Policy(
        version=published.version,
        number=published.number,
        kind=manifest.kind,
        path=published.path.name,
        digest=published.digest,
        base_version=_base_version(session, parent, manifest.base_digest)
        if manifest.kind is PolicyKind.ADAPTER
        else None,
        parent_version=parent,
        run_id=run_id,
        reward_model_id=reward_model_id,
    )
    session.add(policy)
    if verdict is not None:
        record_verdict(session, policy, report, verdict)
    elif report is not None:
        policy.report = report.as_dict()
    session.flush()
    return policy


def record_verdict(session: Session, policy: Policy, report: EvaluationReport | None, verdict: Verdict) -> None:
    policy.state = PolicyState.ACCEPTED if verdict.accepted else PolicyState.REFUSED
    policy.refusals = list(verdict.refusals)
    policy.report = {**(report.as_dict() if report else {}), "flags": list(verdict.flags)}
    session.add(policy)
    session.flush()


def base_of(policy: Policy) -> str:
    """The version whose weights the engine must hold to serve this policy."""
    return policy.base_version or policy.version


def first_base(session: Session, policy: Policy) -> Policy:
    """The row whose folder shows what the policy must fit: its own base, or for a full checkpoint its ancestor."""
    if policy.base_version is not None:
        return get(session, policy.base_version)
    bases = [parent for parent in [policy, *_ancestors(session, policy)] if parent.kind == PolicyKind.BASE]
    if bases:
        return bases[0]
    found = session.exec(
        select(Policy).where(Policy.kind == PolicyKind.BASE).order_by(col(Policy.number).desc())
    ).first()
    if found is None:
        raise NoBase("no base is registered yet; the server registers its model when it starts")
    return found


def _base_version(session: Session, parent: str | None, base_digest: str) -> str:
    if parent is not None:
        base = get(session, base_of(get(session, parent)))
        # A full checkpoint's row holds its manifest's digest; its weights are compared when the adapter is verified.
        if base.kind == PolicyKind.FULL or base.digest == base_digest:
            return base.version
    else:
        found = session.exec(select(Policy).where(Policy.digest == base_digest, Policy.kind == PolicyKind.BASE)).first()
        if found is not None:
            return found.version
    raise WrongBase(f"the adapter was made for the base {base_digest[:8]}, which is not what {parent or 'any row'} has")


def lineage(session: Session, version: str) -> Lineage:
    policy = get(session, version)
    mine = TrainingSample.run_id == policy.run_id
    counts = session.exec(
        select(TrainingSample.kind, TrainingSample.split, func.count())
        .where(mine)
        .group_by(col(TrainingSample.kind), col(TrainingSample.split))
        .order_by(col(TrainingSample.kind), col(TrainingSample.split))
    ).all()
    how = case((col(Reply.source) == SHADOW, SHADOW), else_=col(Reply.state))
    replies = session.exec(select(how, func.count()).where(Reply.policy_version == version).group_by(how)).all()
    return Lineage(
        policy=policy,
        ancestors=_ancestors(session, policy),
        children=list(
            session.exec(select(Policy).where(Policy.parent_version == version).order_by(col(Policy.number))).all()
        ),
        run=session.get(TrainingRun, policy.run_id) if policy.run_id else None,
        reward_model=session.get(RewardModel, policy.reward_model_id) if policy.reward_model_id else None,
        samples=[SampleCount(*row) for row in counts],
        vote_ids=list(session.exec(select(TrainingSample.vote_id).where(mine).order_by(col(TrainingSample.vote_id)))),
        voters=session.exec(select(func.count(func.distinct(TrainingSample.user_id))).where(mine)).one(),
        replies=dict(replies),
    )


def _ancestors(session: Session, policy: Policy) -> list[Policy]:
    found: list[Policy] = []
    while policy.parent_version is not None and (parent := session.get(Policy, policy.parent_version)) is not None:
        found.append(parent)
        policy = parent
    return found


@dataclass(frozen=True)
class Taught:
    policy: Policy
    votes: int  # of one user, that its reward model learned from; not those that it was only tested on


def taught_by(session: Session, user_id: str) -> list[Taught]:
    """What became of a user's votes: each policy that learned from some of them, oldest first."""
    votes = func.count(func.distinct(TrainingSample.vote_id))
    rows = session.exec(
        select(Policy, votes)
        .join(TrainingSample, col(TrainingSample.run_id) == col(Policy.run_id))
        .where(TrainingSample.user_id == user_id, TrainingSample.split == "train")
        .group_by(col(Policy.version))
        .order_by(col(Policy.number))
    ).all()
    return [Taught(*row) for row in rows]
