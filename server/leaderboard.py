"""Who beats whom, from the choices that count. No model of skill: each pair's wins and ties as users gave them."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, select

from feedback.schema import Comparison, Reply, TargetKind
from feedback.statements import table
from feedback.verdicts import effective_vote


def standings(session: Session) -> list[dict[str, Any]]:
    """One row for each unordered pair of different policies, most judged first."""
    left, right = table(Reply).alias("left_reply"), table(Reply).alias("right_reply")
    comparison, vote = table(Comparison), effective_vote
    rows = session.execute(
        select(left.c.policy_version, right.c.policy_version, vote.c.choice)
        .select_from(vote)
        .join(comparison, comparison.c.id == vote.c.target_id)
        .join(left, left.c.id == comparison.c.left_reply_id)
        .join(right, right.c.id == comparison.c.right_reply_id)
        .where(vote.c.target_kind == TargetKind.COMPARISON.value, ~vote.c.quarantined)
    )
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for left_version, right_version, choice in rows:
        if left_version == right_version:
            continue
        first, second = sorted((left_version, right_version))
        pair = pairs.setdefault(
            (first, second),
            {"first": first, "second": second, "first_wins": 0, "second_wins": 0, "ties": 0, "both_bad": 0},
        )
        if choice in ("left", "right"):
            winner = left_version if choice == "left" else right_version
            pair["first_wins" if winner == first else "second_wins"] += 1
        else:
            pair["ties" if choice == "tie" else "both_bad"] += 1
    for pair in pairs.values():
        judged = pair["first_wins"] + pair["second_wins"] + pair["ties"] + pair["both_bad"]
        pair["votes"] = judged
        level = pair["ties"] + pair["both_bad"]  # half a win for each
        pair["first_win_rate"] = (pair["first_wins"] + 0.5 * level) / judged
    return sorted(pairs.values(), key=lambda pair: (-pair["votes"], pair["first"], pair["second"]))
