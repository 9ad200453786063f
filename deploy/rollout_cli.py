"""`kudos rollout controller`, `audit` and `simulate`, and how a look at the evidence is shown."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli import DryRun, opened

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.controller import Look
    from deploy.settings import RolloutSettings

_WORDS = {
    "win_rate": "win rate",
    "net_votes": "net votes per reply",
    "errors": "met an error",
    "harmful_flags": "flagged harm",
    "sample_ratio": "all users",
}


def register(rollout: typer.Typer) -> None:
    rollout.command("controller")(controller)
    rollout.command("audit")(audit)
    rollout.command("simulate")(simulate)


def controller(
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Watch the running rollout: roll back on harm, and go on where that is automatic. The server does so by itself."""
    from deploy import controller as looking
    from deploy.settings import read_plan
    from feedback.errors import StorageError

    with opened() as (store, _, console):
        plan, said = read_plan(), ""
        while True:
            try:
                found = looking.look(store, plan, dry_run=dry_run)
                text = sentence(found, plan, dry_run=dry_run)
            except StorageError as error:
                if once:
                    raise
                text = f"The database does not answer: {error}"
            if text != said:
                console.print(text, soft_wrap=True)
            said = text
            if once:
                return
            time.sleep(plan.look_seconds)


def sentence(look: Look | None, plan: RolloutSettings, *, dry_run: bool = False) -> str:
    """What was seen, and what was or would be done about it."""
    from deploy.controller import allowed
    from deploy.decision import Verdict

    if look is None:
        return "No candidate is in shadow or in canary: there is nothing to watch."
    decision, evidence = look.decision, look.evidence
    if decision.verdict is not Verdict.HOLD and not allowed(decision, plan):
        return f"{evidence.candidate} may go on, by hand (`kudos rollout advance`): {decision.reason}."
    what = {
        Verdict.ROLL_BACK: "leaves service",
        Verdict.ADVANCE: f"goes to {decision.share:.0%} of users",
        Verdict.PROMOTE: "becomes the stable policy",
        Verdict.HOLD: "stays in shadow" if evidence.in_shadow else f"stays at {evidence.share:.0%} of users",
    }[decision.verdict]
    text = f"{evidence.candidate} {what}: {decision.reason}."
    if decision.verdict is Verdict.HOLD or look.acted:
        return text
    return f"Would: {text}" if dry_run else f"Somebody else decided meanwhile; to be looked at again: {text}"


def print_look(console: Console, look: Look, plan: RolloutSettings) -> None:
    from rich.table import Table

    decision = look.decision
    measures = Table("candidate against stable", "estimate", "always-valid bounds", "alike at", "needed above", "users")
    for m in decision.measures:
        known = m.estimate is not None
        measures.add_row(
            _WORDS[m.name],
            f"{m.estimate:.3f}" if known else "too few users",
            f"[{m.lower:.3f}, {m.upper:.3f}]" if known else "",
            f"{m.neutral:g}",
            f"{m.needed:.3f}",
            str(m.users) if known else "",
        )
    console.print(measures)
    limits = Table("what must not get much worse", "candidate", "always-valid bounds", "allowed", "users")
    for g in decision.guardrails:
        number = "{:.2f} times" if g.ratio else "{:+.1%}"
        known = g.estimate is not None
        lowest = "" if g.lowest is None else f"{number.format(g.lowest)} to "
        limits.add_row(
            g.what,
            number.format(g.estimate) if known else "too few users",
            f"[{number.format(g.lower)}, {number.format(g.upper)}]" if known else "",
            f"{lowest}{number.format(g.highest)}" + ("" if lowest else " at most"),
            str(g.users) if known else "",
        )
    console.print(limits)
    alarms = Table("users who", "of them the candidate's", "at a share of", "p, always valid", "alarm below")
    for alarm in decision.alarms:
        alarms.add_row(
            _WORDS[alarm.name],
            f"{alarm.candidate} of {alarm.users}",
            f"{alarm.share:.0%}",
            f"{alarm.p_value:.2g}",
            f"{alarm.alpha:.2g}",
        )
    console.print(alarms)
    console.print(sentence(look, plan, dry_run=True), soft_wrap=True)


def audit() -> None:
    """Check the chain of rollout events, and name the first that was changed by hand. Exits 1 where there is one."""
    from deploy.audit import audit as check

    with opened() as (store, _, console):
        with store.read() as session:
            found = check(session)
        if found.broken is None:
            text = f"{found.events} events, each as it was written. The newest hash: {found.head}"
            console.print(text, soft_wrap=True)
            return
        event = found.broken
        console.print(
            f"event {event.id} is broken: {event.action} of rollout {event.rollout_id} by {event.actor} at "
            f"{event.created_at:%Y-%m-%d %H:%M:%S} UTC is not what was written, or not where it was written",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def simulate(
    runs: Annotated[int, typer.Option(min=10, help="Made-up rollouts of each scenario.")] = 1000,
    turns: Annotated[int, typer.Option(min=100, help="Of all people together, in each.")] = 6000,
    people: Annotated[int, typer.Option(min=50, help="In each.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the people and of what they say.")] = 0,
) -> None:
    """Made-up rollouts under these settings: how often good ones are rolled back, how soon bad ones. One JSON line."""
    from rich.console import Console
    from rich.table import Table

    from deploy.errors import BadPlan
    from deploy.settings import read_plan
    from deploy.simulation import SCENARIOS
    from deploy.simulation import simulate as run

    try:
        plan = read_plan()
    except BadPlan as error:
        raise typer.BadParameter(str(error)) from None
    table = Table("scenario", "rolled back", "votes until then (median)", "by", "shown no worse")
    figures = []
    for number, scenario in enumerate(SCENARIOS):
        one = run(scenario, plan, runs=runs, people=people, turns=turns, seed=seed + number)
        figures.append(one)
        after = one["median_votes_to_roll_back"]
        table.add_row(
            one["scenario"],
            f"{one['rolled_back']} of {runs}",
            "" if after is None else f"{after:.0f} of {one['votes']}",
            ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in one["by"].items() if count),
            str(one["no_worse"]),
        )
    Console(stderr=True).print(table)
    typer.echo(json.dumps({"alpha": plan.alpha, "people": people, "turns": turns, "seed": seed, "scenarios": figures}))
