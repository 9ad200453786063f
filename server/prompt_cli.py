"""`kudos prompt`: system prompts as versions."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from sqlmodel import Session

app = typer.Typer(name="prompt", no_args_is_help=True, help="System prompts: versions, and who gets which.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Of the prompt: a-z, 0-9, _ and -.")],
    file: Annotated[Path, typer.Argument(help="Its text, as a file; - for standard input.")],
) -> None:
    """Make the next version of a prompt. It is used by nobody before `kudos prompt use`."""
    from feedback.system_prompts import add_prompt

    text = _text(file).strip("\n")
    with _session() as session:
        made, new = add_prompt(session, name=name, text=text, actor=getpass.getuser())
        print(f"{made.id}{'' if new else ' has this text already'}")


@app.command("list")
def list_() -> None:
    """Every version, and who gets which."""
    from rich.console import Console
    from rich.table import Column, Table

    from feedback.system_prompts import prompt_versions, uses

    with _session() as session:
        table = Table(Column("version", no_wrap=True), "used by", "made (UTC)", "by", "text")
        used: dict[str, list[str]] = {}
        for use in uses(session):
            for arm in use.arms or ():
                used.setdefault(arm["version"], []).append(f"{arm['weight']:.0%} of {use.key_id or 'all others'}")
            if not use.arms:
                print(f"no prompt for {use.key_id or 'all others'}", file=sys.stderr)
        for row in prompt_versions(session):
            first = row.text.splitlines()[0]
            shown = first if len(first) <= 60 and first == row.text else f"{first[:59]}…"
            table.add_row(row.id, ", ".join(used.get(row.id, [])), f"{row.created_at:%Y-%m-%d %H:%M}", row.actor, shown)
    Console().print(table)


@app.command()
def show(version: Annotated[str, typer.Argument(help="NAME@NUMBER, or NAME for its newest version.")]) -> None:
    """Print one version's text."""
    from feedback.system_prompts import find_prompt

    with _session() as session:
        print(find_prompt(session, version).text)


@app.command()
def use(
    versions: Annotated[
        list[str] | None, typer.Argument(help="NAME@NUMBER, or NAME for its newest version; with =WEIGHT if several.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="For the users of this key; unset: for all others.")] = None,
    none: Annotated[bool, typer.Option("--none", help="No prompt.")] = False,
    default: Annotated[bool, typer.Option("--default", help="With --key: what all others get.")] = False,
) -> None:
    """Say who gets which version. Several are an experiment: each user keeps one, drawn by weight."""
    from feedback.system_prompts import set_use

    if [bool(versions), none, default].count(True) != 1:
        _refuse("name versions, or --none, or --default with --key")
    arms = None if default else [_arm(each) for each in versions or ()]
    with _session() as session:
        used = set_use(session, arms=arms, key_id=key, actor=getpass.getuser())
        whom = used.key_id or "all others"
        shares = ", ".join(f"{arm['weight']:.0%} {arm['version']}" for arm in used.arms or ())
        print(f"{whom}: {shares or ('no prompt' if used.arms is not None else 'as all others')}")


def _arm(text: str) -> tuple[str, float]:
    version, _, weight = text.partition("=")
    try:
        return version, float(weight or 1.0)
    except ValueError:
        _refuse(f"{text}: {weight!r} is no weight; write for instance {version}=0.5")


def _text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"{file} cannot be read: {error}")


@contextmanager
def _session() -> Iterator[Session]:
    from feedback.errors import FeedbackError
    from feedback.settings import Settings
    from feedback.store import open_store

    store = open_store(Settings())
    try:
        with store.write() as session:
            yield session
    except FeedbackError as error:
        _refuse(str(error))
    finally:
        store.close()


def _refuse(message: str) -> NoReturn:
    print(f"kudos: {message}", file=sys.stderr)
    raise SystemExit(2)
