"""What sets two policies apart: their parents, how and on which votes they were trained, what the gate measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from deploy import policies
from deploy.policies import Lineage

_NOT_MEASURES = ("flags", "extra")


@dataclass(frozen=True)
class Difference:
    name: str
    first: Any
    second: Any


def differences(session: Session, first: str, second: str) -> list[Difference]:
    """Only what differs. Raises UnknownPolicy."""
    one, two = policies.lineage(session, first), policies.lineage(session, second)
    sides = [dict(_of(one)), dict(_of(two))]
    votes = [set(one.vote_ids), set(two.vote_ids)]
    found = [
        Difference(name, sides[0].get(name), sides[1].get(name))
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name) != sides[1].get(name)
    ]
    if votes[0] != votes[1]:
        alone = len(votes[0] - votes[1]), len(votes[1] - votes[0])
        found.append(Difference("votes that it alone learned from", *alone))
    return found


def _of(line: Lineage) -> Iterator[tuple[str, Any]]:
    policy, run = line.policy, line.run
    yield from (
        ("kind", policy.kind),
        ("state", policy.state),
        ("comes from", policy.parent_version),
        ("sits on", policy.base_version),
        ("run", policy.run_id),
        ("voters", line.voters),
    )
    for count in line.samples:
        yield f"samples: {count.kind}, {count.split.replace('_', ' ')}", count.samples
    if run is not None:
        yield from _flat("setting", run.config)
    for name, value in policy.report.items():
        if name not in _NOT_MEASURES:
            yield name.replace("_", " "), value


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}", inner)
    else:
        yield path, value
