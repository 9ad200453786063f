"""Policies as rows alone, where no folder is read."""

from sqlmodel import Session

from feedback.schema import Policy, PolicyKind, PolicyState


def add_policy(
    session: Session,
    number: int,
    kind: PolicyKind = PolicyKind.ADAPTER,
    *,
    base: str | None = "v0-00000000",
    state: PolicyState = PolicyState.ACCEPTED,
) -> str:
    version = f"v{number}-{number:08x}"
    on_base = base if kind is PolicyKind.ADAPTER else None
    session.add(
        Policy(
            version=version,
            number=number,
            kind=kind,
            state=state,
            path=version,
            digest=f"{number:064x}",
            base_version=on_base,
            parent_version=on_base,
            refusals=["It is too far away."] if state is PolicyState.REFUSED else [],
        )
    )
    session.flush()
    return version
