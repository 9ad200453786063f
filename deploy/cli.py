"""`kudos policy` and `kudos rollout`: the operator's commands. They work on the database; replicas follow it.

Commands that change what users meet say what they will do first, and with --dry-run do no more than that.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.rollout import Plan
    from feedback.schema import Policy, Rollout
    from feedback.settings import Settings
    from feedback.store import Store

VersionArgument = Annotated[str, typer.Argument(help="A policy's version, such as v3-1f2e3d4c.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Reason = Annotated[str, typer.Option("--reason", help="Kept with the transition, for whoever reads it later.")]
Share = Annotated[float | None, typer.Option("--share", help="Share of users, above 0 and at most 1.")]


def register(app: typer.Typer) -> None:
    from deploy import leaderboard_cli, rollout_cli  # which use this module's helpers

    app.command("leaderboard")(leaderboard_cli.leaderboard)

    policy = typer.Typer(no_args_is_help=True, help="Look at policies: what they are, where they come from.")
    policy.command("list")(policy_list)
    policy.command("show")(policy_show)
    policy.command("diff")(policy_diff)
    policy.command("verify")(policy_verify)
    policy.command("compare")(policy_compare)
    policy.command("matchup")(policy_matchup)
    app.add_typer(policy, name="policy")
    rollout = typer.Typer(no_args_is_help=True, help="Decide which policy serves whom.")
    rollout.command("status")(rollout_status)
    rollout.command("start")(rollout_start)
    rollout.command("advance")(rollout_advance)
    rollout.command("hold")(rollout_hold)
    rollout.command("resume")(rollout_resume)
    rollout.command("promote")(rollout_promote)
    rollout.command("rollback")(rollout_rollback)
    rollout_cli.register(rollout)
    app.add_typer(rollout, name="rollout")


def policy_list() -> None:
    """Every policy, with its state and what the gate measured."""
    from rich import box
    from rich.table import Column, Table

    from deploy import policies, rollout
    from deploy.errors import NoBase

    with opened() as (store, _, console), store.read() as session:
        # A narrow terminal gets fewer columns, and each of them whole: versions are there to be copied.
        roomy = console.width >= 110
        names = ["version", "state", "serving", "win rate", "KL", "parent", *(["kind", "made (UTC)"] if roomy else [])]
        table = Table(*(Column(name, no_wrap=True) for name in names), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        try:
            wanted = rollout.wanted(session)
        except NoBase:
            wanted = None
        for row in policies.everything(session):
            serving = ""
            if wanted is not None and row.version == wanted.stable:
                serving = f"stable {1 - wanted.share:.0%}"
            elif wanted is not None and row.version == wanted.candidate:
                serving = f"canary {wanted.share:.0%}"
            elif wanted is not None and row.version == wanted.shadow:
                serving = "shadow"
            cells = [
                row.version,
                row.state,
                serving,
                _interval(row.report, "win_rate"),
                _number(row.report.get("kl_nats")),
                row.parent_version or "",
            ]
            table.add_row(*cells, *([row.kind, f"{row.created_at:%Y-%m-%d %H:%M}"] if roomy else []))
        console.print(table)


def policy_show(version: VersionArgument) -> None:
    """One policy's line both ways: the votes, samples, reward model and run behind it; its replies and children."""
    from rich.table import Table

    from deploy import policies

    with opened() as (store, settings, console), store.read() as session:
        line = policies.lineage(session, version)
        policy = line.policy
        table = Table(show_header=False)
        table.add_row("version", f"{policy.version} ({policy.kind}, {policy.state})")
        table.add_row("digest", policy.digest)
        table.add_row("folder", str(policies.folder_of(policy, settings.policies_folder)))
        if policy.base_version:
            table.add_row("sits on", policy.base_version)
        table.add_row("comes from", " <- ".join(parent.version for parent in line.ancestors) or "nothing: it is a base")
        if line.run is not None:
            table.add_row("run", f"{line.run.id} ({line.run.state}), saw votes up to {line.run.last_vote_id}")
        if line.reward_model is not None:
            accuracy = _interval(line.reward_model.metrics, "held_out_accuracy")
            table.add_row("reward model", f"{line.reward_model.id}" + (f", held-out {accuracy}" if accuracy else ""))
        if line.samples:
            parts = ", ".join(f"{count.samples} {count.kind} ({count.split})" for count in line.samples)
            table.add_row("samples", f"{parts}; from {line.voters} users")
            table.add_row("votes", f"{len(line.vote_ids)}: {_ranges(line.vote_ids)}")
        table.add_row("replies", ", ".join(f"{n} {state}" for state, n in sorted(line.replies.items())) or "none yet")
        table.add_row("children", ", ".join(child.version for child in line.children) or "none")
        for refusal in policy.refusals:
            table.add_row("refused", refusal)
        for flag in policy.report.get("flags") or []:
            table.add_row("flag", flag)
        console.print(table)
        _print_report(console, policy)


def policy_diff(first: VersionArgument, second: VersionArgument) -> None:
    """What sets two policies apart: parents, settings of their runs, votes, and the gate's measures that differ."""
    from rich.table import Column, Table

    from deploy.diff import differences

    with opened() as (store, _, console), store.read() as session:
        table = Table("what", Column(first, overflow="fold"), Column(second, overflow="fold"))
        for each in differences(session, first, second):
            table.add_row(each.name, _number(each.first), _number(each.second))
        console.print(table if table.row_count else f"{first} and {second} do not differ in anything that is recorded.")


def policy_verify(version: VersionArgument) -> None:
    """Read a policy's folder and check every byte of it, as a server does before it loads one."""
    from deploy import policies
    from deploy.artifacts import verify
    from deploy.digests import base_shapes, model_digest
    from deploy.errors import WrongDigest
    from feedback.schema import PolicyKind

    with opened() as (store, settings, console), store.read() as session:
        policy = policies.get(session, version)
        folder = policies.folder_of(policy, settings.policies_folder)
        if policy.kind == PolicyKind.BASE:
            if (found := model_digest(folder)) != policy.digest:
                raise WrongDigest(f"the weights in {folder} have the digest {found[:8]}, not {policy.digest[:8]}")
            console.print(f"{version}: the base's weights are the ones that were registered")
            return
        fits = policies.first_base(session, policy)
        manifest = verify(folder, base_shapes(policies.folder_of(fits, settings.policies_folder)), digest=policy.digest)
        size = sum(entry.size for entry in manifest.files.values())
        console.print(f"{version}: {len(manifest.files)} files, {size:,} bytes, whole, safe and fit for {fits.version}")


def policy_compare(
    first: VersionArgument,
    second: VersionArgument,
    live: Annotated[bool, typer.Option("--live", help="Also let users compare the two, side by side.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Two policies' reports beside each other; with --live, comparisons in chat draw from these two."""
    from rich.table import Table

    from deploy import matchups, policies

    with opened() as (store, _, console):
        with store.read() as session:
            one, two = policies.get(session, first), policies.get(session, second)
        table = Table("measure", one.version, two.version)
        table.add_row("state", one.state, two.state)
        measured = _measures(one), _measures(two)
        for name in sorted(measured[0].keys() | measured[1].keys()):
            table.add_row(name, *(_number(each.get(name)) for each in measured))
        console.print(table)
        if live:
            console.print(f"Comparisons in chat draw from {first} and {second}, sides at random.")
            if not dry_run:
                with store.write() as session:
                    matchups.choose(session, first, second, _actor())


def policy_matchup(
    versions: Annotated[list[str] | None, typer.Argument(help="Two policies; with --automatic, two or more.")] = None,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="Draw the pair that the leaderboard knows least about, mostly.")
    ] = False,
    off: Annotated[bool, typer.Option("--off", help="Compare what serves, as before.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Which policies comparisons in chat draw from: two that are named, or pairs by what is known of them."""
    from deploy import matchups, policies

    named = versions or []
    if off == bool(named or automatic) or (named and not automatic and len(named) != 2):
        raise typer.BadParameter("name two policies, or say --automatic (with or without policies), or --off")
    if off:
        text = "Comparisons in chat draw from what serves: both arms in a canary, else one policy twice."
    elif automatic:
        text = f"Comparisons in chat draw pairs of {', '.join(named) or 'what replicas hold'}, least known first."
    else:
        text = f"Comparisons in chat draw from {named[0]} and {named[1]}, sides at random."
    first, second = (named[0], named[1]) if named and not automatic else (None, None)
    pool = named if automatic and named else None
    with opened() as (store, _, console):
        with store.read() as session:
            for version in named:
                policies.get(session, version)
        if not dry_run:
            with store.write() as session:
                matchups.choose(session, first, second, _actor(), automatic=automatic, versions=pool)
        console.print(f"Would: {text}" if dry_run else text)


def rollout_status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Which policy serves whom, what the votes say so far, what each replica holds, and the last transitions."""
    from rich.table import Table

    from deploy import controller, rollout
    from deploy.replicas import folded, replicas
    from deploy.rollout_cli import print_look
    from deploy.settings import read_plan

    with opened() as (store, _, console), store.read() as session:
        wanted, holding, plan = rollout.wanted(session), replicas(session), read_plan()
        look = controller.assess(session, plan)
        in_weights = {row.id: folded(session, row) for row, _ in holding}
        if as_json:
            body = {
                "stable": wanted.stable,
                "candidate": wanted.candidate,
                "share": wanted.share,
                "shadow": wanted.shadow,
                "base": wanted.base,
                "matchup": wanted.matchup,
                "held": look.evidence.held if look else "",
                "decision": look.decision.as_dict() if look else None,
                "replicas": [
                    {
                        "id": r.id,
                        "ready": r.ready,
                        "holds": r.holds,
                        "folded": in_weights[r.id],
                        "problems": r.problems,
                        "alive": alive,
                    }
                    for r, alive in holding
                ],
            }
            typer.echo(json.dumps(body))
            return
        console.print(f"Stable {wanted.stable} serves {1 - wanted.share:.0%} of users.")
        if wanted.candidate:
            console.print(f"Candidate {wanted.candidate} serves {wanted.share:.0%}.")
        if wanted.shadow:
            console.print(f"Candidate {wanted.shadow} answers in shadow: nobody meets it.")
        if look is not None:
            print_look(console, look, plan)
        if holding:
            table = Table("replica", "state", "holds", "problems")
            for replica, alive in holding:
                state = ("ready" if replica.ready else "not ready") if alive else "silent"
                problems = "; ".join(f"{version}: {why}" for version, why in replica.problems.items())
                holds = ", ".join(replica.holds) + (" (folded)" if in_weights[replica.id] else "")
                table.add_row(replica.id, state, holds, problems)
            console.print(table)
        table = Table("when (UTC)", "candidate", "action", "share", "by", "reason")
        for event, about in rollout.events(session):
            table.add_row(
                f"{event.created_at:%Y-%m-%d %H:%M:%S}",
                about.candidate_version,
                event.action,
                f"{event.share:.0%}",
                event.actor,
                event.reason,
            )
        if table.row_count:
            console.print(table)


def rollout_start(
    version: VersionArgument,
    *,
    share: Share = None,
    force: Annotated[bool, typer.Option("--force", help="Even if the gate did not accept it; needs --reason.")] = False,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="First let it answer some prompts in the background; nobody sees them.")
    ] = False,
    reason: Reason = "",
    dry_run: DryRun = False,
) -> None:
    """Let a policy meet a share of users (unset: the first of KUDOS_ROLLOUT_STEPS), or at first nobody."""
    from deploy import rollout
    from deploy.settings import read_plan

    how: dict[str, Any] = {"reason": reason, "force": force, "shadow": shadow, "steps": read_plan().steps}
    _decide(
        dry_run,
        lambda session: rollout.plan_start(session, version, share, **how),
        lambda session: rollout.start(session, version, share, _actor(), **how),
    )


def rollout_advance(share: Share = None, reason: Reason = "", dry_run: DryRun = False) -> None:
    """Take the candidate to its next step; after the last one it is promoted."""
    from deploy import rollout
    from deploy.settings import read_plan

    steps = read_plan().steps
    _decide(
        dry_run,
        lambda session: rollout.plan_advance(session, share, steps),
        lambda session: rollout.advance(session, _actor(), reason, share=share, steps=steps),
    )


def rollout_hold(reason: Reason = "", dry_run: DryRun = False) -> None:
    """Stay at this share until somebody resumes or advances; harm still rolls back."""
    from deploy import rollout

    _decide(dry_run, rollout.plan_hold, lambda session: rollout.hold(session, _actor(), reason))


def rollout_resume(reason: Reason = "", dry_run: DryRun = False) -> None:
    """End a hold; the step's minimum time begins anew."""
    from deploy import rollout

    _decide(dry_run, rollout.plan_resume, lambda session: rollout.resume(session, _actor(), reason))


def rollout_promote(reason: Reason = "", dry_run: DryRun = False) -> None:
    """Make the candidate the stable policy, for everyone."""
    from deploy import rollout

    _decide(dry_run, rollout.plan_promote, lambda session: rollout.promote(session, _actor(), reason))


def rollout_rollback(reason: Reason = "", dry_run: DryRun = False) -> None:
    """Take the candidate, in canary or promoted, away from everyone; the policy before it returns."""
    from deploy import rollout

    _decide(dry_run, rollout.plan_rollback, lambda session: rollout.rollback(session, _actor(), reason))


def _decide(dry_run: bool, plan: Callable[[Any], Plan], act: Callable[[Any], Rollout]) -> None:
    from deploy.wording import sentence_of

    with opened() as (store, _, console):
        if dry_run:
            with store.read() as session:
                console.print(f"Would: {sentence_of(plan(session))}")
            return
        with store.write() as session:  # planned and done in one transaction: what is printed is what happens
            planned = plan(session)
            console.print(sentence_of(planned))
            act(session)
        console.print("Done. Each replica follows within seconds; see `kudos rollout status`.")


@contextmanager
def opened() -> Iterator[tuple[Store, Settings, Console]]:
    """The store, and errors as one line for people instead of a traceback."""
    from rich.console import Console

    from deploy.errors import DeployError
    from feedback.errors import FeedbackError
    from feedback.settings import Settings
    from feedback.store import open_store

    settings, store = Settings(), None
    try:
        store = open_store(settings)
        yield store, settings, Console(markup=False, highlight=False)
    except (DeployError, FeedbackError) as error:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(str(error), style="red")
        raise typer.Exit(1) from None
    finally:
        if store is not None:
            store.close()


def _actor() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except OSError:  # a container whose user id has no name
        return "cli"


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _interval(report: dict[str, Any], name: str) -> str:
    value, lower, upper = (report.get(key) for key in (name, f"{name}_lower", f"{name}_upper"))
    if value is None:
        return ""
    return f"{value:.3f}" + (f" [{lower:.3f}, {upper:.3f}]" if lower is not None and upper is not None else "")


def _ranges(ids: list[int]) -> str:
    """1-3, 5, 8-9: votes are many and mostly consecutive."""
    spans: list[list[int]] = []
    for one in sorted(set(ids)):
        if spans and one == spans[-1][1] + 1:
            spans[-1][1] = one
        else:
            spans.append([one, one])
    shown = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans[:12])
    return shown + (", ..." if len(spans) > 12 else "")


def _print_report(console: Console, policy: Policy) -> None:
    from rich.table import Table

    measures = _measures(policy)
    if measures:
        table = Table("measure", "value", title="The gate's evidence")
        for name, value in measures.items():
            table.add_row(name, _number(value))
        console.print(table)


def _measures(policy: Policy) -> dict[str, Any]:
    """Every number of a policy's report, by what people call it; those of an evaluation set after the others."""
    plain = {name: value for name, value in policy.report.items() if name not in ("flags", "extra", "sets")}
    sets = {f"set {name} {measure}": value for name, rates in policy.report.get("sets", {}).items()
            for measure, value in rates.items()}  # fmt: skip
    return {name.replace("_", " "): value for name, value in (plain | sets).items()}
