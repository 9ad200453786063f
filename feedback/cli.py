"""`kudos feedback stats|bursts|import|export|erase|expire` and `kudos db migrate|check`.

What a program reads goes to standard output (`--json`, or the export itself); progress and words go to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from feedback.privacy import Erasure, Expiry
    from feedback.settings import Settings
    from feedback.store import Store

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class ImportFormat(StrEnum):
    HH = "hh"
    ARENA = "arena"
    OPEN_WEBUI = "open-webui"
    RANKINGS = "rankings"


class ExportFormat(StrEnum):
    PREFERENCE = "preference"
    UNPAIRED = "unpaired"
    VOTES = "votes"


class Style(StrEnum):
    CONVERSATIONAL = "conversational"
    PLAIN = "plain"


def register(app: typer.Typer) -> None:
    feedback = typer.Typer(no_args_is_help=True, help="The log of votes: look at it, import, export, erase.")
    feedback.command("stats")(stats)
    feedback.command("bursts")(bursts)
    feedback.command("import")(import_)
    feedback.command("export")(export)
    feedback.command("erase")(erase)
    feedback.command("expire")(expire)
    app.add_typer(feedback, name="feedback")
    database = typer.Typer(no_args_is_help=True, help="The database: migrate it, check it.")
    database.command("migrate")(migrate)
    database.command("check")(check)
    app.add_typer(database, name="db")


def register_bench(bench: typer.Typer) -> None:
    bench.command("samples")(bench_samples)


def stats(json_: Json = False) -> None:
    """Count the votes that are in effect, and what they are about."""
    from feedback.verdicts import counts

    with _store() as (_, store), store.read() as session:
        found = counts(session)
    if json_:
        _print_json(found.as_dict())
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table(show_header=False)
    for name, value in found.as_dict().items():
        words = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else str(value)
        grid.add_row(name.replace("_", " "), words or "none")
    Console().print(grid)


def bursts(
    most: Annotated[
        int | None, typer.Option("--votes-per-minute", min=1, help="Overrides KUDOS_BURST_VOTES_PER_MINUTE.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show whose votes came faster than anybody reads, and when: they do not train."""
    from feedback.bursts import find_bursts

    with _store() as (settings, store), store.read() as session:
        limit = settings.burst_votes_per_minute if most is None else most
        found = find_bursts(session, limit)
    if json_:
        _print_json(
            {
                "votes_per_minute": limit,
                "data": [
                    {
                        "user": each.user_id,
                        "began": each.began.isoformat(),
                        "ended": each.ended.isoformat(),
                        "votes": len(each.vote_ids),
                    }
                    for each in found
                ],
            }
        )
        return
    for each in found:
        took = (each.ended - each.began).total_seconds()
        began = f"{each.began:%Y-%m-%d %H:%M:%S}"
        typer.echo(f"{each.user_id}: {len(each.vote_ids)} votes within {took:.0f} s from {began} UTC")
    if not limit:
        typer.echo("nobody looks for bursts: KUDOS_BURST_VOTES_PER_MINUTE is 0")
    elif not found:
        typer.echo(f"nobody cast more than {limit} votes within a minute")


def import_(
    path: Annotated[Path, typer.Argument(help="JSON lines or one JSON array; may be compressed (.gz).")],
    format_: Annotated[
        ImportFormat,
        typer.Option(
            "--format", help="Whose file it is: HH-RLHF, Chatbot Arena, Open WebUI; or rankings of several replies."
        ),
    ] = ImportFormat.HH,
    json_: Json = False,
) -> None:
    """Add other people's judgements to the log. The same file twice adds nothing."""
    from feedback.imports import import_file

    with _store() as (_, store), _progress(f"importing {path.name}") as advance:
        summary = import_file(store, path, format_.value, advance)
    if json_:
        _print_json(summary.as_dict())
        return
    for problem in summary.problems:
        typer.echo(f"{path.name}:{problem.line}: skipped: {problem.reason}", err=True)
    typer.echo(
        f"{summary.lines} records: {summary.imported} imported, {summary.changed} changed, "
        f"{summary.already_there} there already, {summary.skipped} skipped"
    )


def export(  # noqa: PLR0917 -- typer calls it by name
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="TRL's preference or unpaired; or votes, as they change.")
    ],
    style: Annotated[
        Style, typer.Option(help="TRL's two styles: lists of messages, or plain texts with HH-RLHF's marks.")
    ] = Style.CONVERSATIONAL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, .parquet too; standard output if left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="With votes: go on as more come, like tail -f.")] = False,
    after: Annotated[
        int | None, typer.Option(min=0, help="With votes: only what follows this cursor. A file knows it by itself.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.05, help="With --follow: seconds between two looks.")] = 1.0,
    json_: Json = False,
) -> None:
    """Write the votes that may train: for TRL and its like, or each change of a vote as a line. Not a backup."""
    if format_ is ExportFormat.VOTES:
        _export_votes(output, after, every if follow else None)
        return
    if follow or after is not None:
        raise typer.BadParameter(
            "only --format votes can be followed: no training format has a word for a withdrawn vote"
        )
    from feedback.exports import EXPORTS, write_lines, write_parquet

    plain, parquet = style is Style.PLAIN, output is not None and output.suffix == ".parquet"
    with _store() as (settings, store), store.read() as session, _replacing(output) as place:
        rows = EXPORTS[format_.value](
            session,
            consent_default=settings.consent_default,
            plain=plain,
            burst_votes_per_minute=settings.burst_votes_per_minute,
        )
        if parquet and place is not None:
            count = write_parquet(rows, place, format_.value, plain=plain)
        elif place is not None:
            with place.open("w", encoding="utf-8") as file:
                count = write_lines(rows, file)
        else:
            count = write_lines(rows, sys.stdout)
    if output is not None:
        _print_json({"rows": count, "path": str(output)}) if json_ else typer.echo(f"{count} rows in {output}")


def _export_votes(output: Path | None, after: int | None, every_seconds: float | None) -> None:
    """Ends when everything is told, or never, where it follows."""
    from feedback.errors import StorageError
    from feedback.follow import Follower, Tail, spelled

    if output is not None and (after is not None or output.suffix == ".parquet"):
        raise typer.BadParameter("a file of votes is JSON lines and goes on after its last one: leave --after out")
    with _store() as (settings, store), Tail(output) if output else nullcontext() as tail:
        cursor, told = (tail.cursor, tail.told) if tail else (after or 0, None)
        follower = Follower(store, consent_default=settings.consent_default, cursor=cursor, told=told)
        try:
            while True:
                try:
                    for lines in follower.news():
                        if tail:
                            tail.append(lines)
                        else:
                            sys.stdout.buffer.write(b"".join(map(spelled, lines)))
                            sys.stdout.buffer.flush()
                except StorageError as error:
                    if every_seconds is None:
                        raise
                    typer.echo(f"the database is away, and will be asked again: {error}", err=True)
                if every_seconds is None:
                    return
                time.sleep(every_seconds)
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            return


def erase(
    user: Annotated[str, typer.Argument(help="The user's id, as `kudos` knows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Json = False,
) -> None:
    """Erase a user: conversations, replies, votes. Prints the policies that learned from them. Cannot be undone."""
    from dataclasses import asdict

    from feedback import privacy

    with _store() as (settings, store):
        if not yes:
            with store.read() as session:
                found = privacy.holdings(session, user)
            typer.confirm(f"Erase {user} with {_amounts(found)}, for ever?", abort=True, err=True)
        erased = privacy.erase(store, settings.runs_folder, user)
    if json_:
        _print_json(asdict(erased))
        return
    typer.echo(f"erased {user}: {_amounts(erased)}")
    typer.echo(f"policies that learned from this user: {', '.join(erased.policies) or 'none'}")


def expire(
    days: Annotated[int | None, typer.Option(min=1, help="Overrides KUDOS_RETENTION_DAYS.")] = None,
    json_: Json = False,
) -> None:
    """Delete conversations that had no new reply for KUDOS_RETENTION_DAYS, with their replies and votes."""
    from dataclasses import asdict

    from feedback import privacy

    with _store() as (settings, store):
        limit = days or settings.retention_days
        if limit is None:
            raise typer.BadParameter("how old? Set KUDOS_RETENTION_DAYS, or give --days")
        gone = privacy.expire(store, settings.runs_folder, limit)
    _print_json(asdict(gone)) if json_ else typer.echo(f"deleted {_amounts(gone)}")


def migrate(json_: Json = False) -> None:
    """Bring the database to this version's schema. Every command does so by itself; this one does nothing else."""
    from feedback.migrate import head_revision, upgrade
    from feedback.store import connect

    with _errors():
        store = connect(_settings())
        try:
            changed = upgrade(store)
        finally:
            store.close()
        head = head_revision()
    if json_:
        _print_json({"revision": head, "changed": changed})
    else:
        typer.echo(f"migrated to {head}" if changed else f"at {head} already")


def check(json_: Json = False) -> None:
    """Check the database: reachable, whole, and at this version's schema. Changes nothing; fails if one is amiss."""
    from feedback.health import check_database

    with _errors():
        found = check_database(_settings())
    if json_:
        _print_json({"ok": not found.problems, **found.as_dict()})
    else:
        typer.echo(f"{found.database}: {found.server}, revision {found.revision} (this version: {found.head})")
        for problem in found.problems:
            typer.echo(f"problem: {problem}", err=True)
        if not found.problems:
            typer.echo("no problems found")
    if found.problems:
        raise typer.Exit(1)


def bench_samples(
    votes: Annotated[int, typer.Option(min=100, help="In a made-up log; a tenth of it is timed too.")] = 1_000_000,
) -> None:
    """Turn a log of votes into training samples: seconds, memory, and how both grow with the log. One JSON line."""
    from feedback.samples_bench import measure

    _print_json(measure(votes))


def _amounts(found: Erasure | Expiry) -> str:
    return f"{found.conversations} conversations, {found.replies} replies, {found.votes} votes"


def _settings() -> Settings:
    from feedback.settings import Settings

    return Settings()


@contextmanager
def _store() -> Iterator[tuple[Settings, Store]]:
    from feedback.store import open_store

    with _errors():
        settings = _settings()
        store = open_store(settings)
        try:
            yield settings, store
        finally:
            store.close()


@contextmanager
def _errors() -> Iterator[None]:
    """A business error is one line for a person; anything else is a defect and keeps its traceback."""
    from feedback.errors import FeedbackError

    try:
        yield
    except FeedbackError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _progress(words: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _replacing(output: Path | None) -> Iterator[Path | None]:
    """A place for a file that appears under its name only when it is whole."""
    if output is None:
        yield None
        return
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(output)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
