"""`kudos serve`, `up`, `doctor`, `key`, `prompt` and `safety`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.settings import Settings

Scopes = Annotated[str, typer.Option(help="Comma-separated: chat, feedback, operator, metrics, on_behalf.")]


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(up)
    app.command()(doctor)
    key = typer.Typer(no_args_is_help=True, help="API keys: who may call this server, and for what.")
    key.command("create")(key_create)
    key.command("list")(key_list)
    key.command("revoke")(key_revoke)
    app.add_typer(key, name="key")
    from server.prompt_cli import app as prompt
    from server.safety_cli import app as safety

    app.add_typer(prompt)
    app.add_typer(safety)


def serve() -> None:
    """The server alone: chat, votes, rollouts, the page. Settings come from KUDOS_* variables."""
    settings = _settings()
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.engine_threads))
    from server.preload import restart_with_libraries

    restart_with_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from server.errors import BadConfiguration
    from server.run import serve as run
    from server.vllm_engine import VllmEngine

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            raise SystemExit(runner.run(run(settings, VllmEngine(settings))))
    except BadConfiguration as error:
        _refuse(str(error))


def up(
    trainer: Annotated[bool, typer.Option(help="Run a trainer beside the server.")] = True,
) -> None:
    """The server, and a trainer beside it that wakes when enough new votes have come in."""
    from server.up import Supervisor

    raise SystemExit(Supervisor(_settings(), trainer=trainer).run())


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Whether kudos can run here, and what mends what is amiss. Changes nothing; exits 1 where something is broken."""
    from server.doctor import Level, examine

    settings = _settings()
    found = examine(settings)
    broken = any(each.level is Level.BROKEN for each in found)
    if as_json:
        print(json.dumps({"ok": not broken, "findings": [asdict(each) for each in found]}))
    else:
        for each in found:
            print(f"{each.level.upper():<7}{each.check}: {each.said}")
            if each.mend and each.level is not Level.OK:
                print(f"       mend: {each.mend}")
        print("something is broken" if broken else "kudos can run here")
    raise SystemExit(1 if broken else 0)


def key_create(
    label: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    scopes: Scopes = "chat,feedback",
    user: Annotated[str | None, typer.Option(help="The user that the key speaks for; new by default.")] = None,
) -> None:
    """Make a key. Its secret is printed once, on standard output, and stored nowhere."""
    from feedback.store import open_store
    from server.identity import Scope, create_key

    asked = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    unknown = [scope for scope in asked if scope not in list(Scope)]
    if unknown or not asked:
        _refuse(f"scopes: {', '.join(unknown) or 'none'} given; choose from {', '.join(Scope)}")
    store = open_store(_settings())
    try:
        with store.write() as session:
            key, secret = create_key(session, label=label, scopes=asked, user_id=user)
            print(f"{key.id}: {', '.join(key.scopes)}, for the user {key.user_id}", file=sys.stderr)
    finally:
        store.close()
    print(secret)


def key_list() -> None:
    """Every key that has not been revoked."""
    from rich.console import Console
    from rich.table import Column, Table

    from feedback.store import open_store
    from server.identity import live_keys

    store = open_store(_settings())
    try:
        # Ids and users are there to be copied, so a narrow terminal does not cut them.
        others = (Column(name, overflow="fold") for name in ("label", "scopes", "user", "made (UTC)"))
        table = Table(Column("id", no_wrap=True), *others)
        with store.read() as session:
            for key in live_keys(session):
                made = f"{key.created_at:%Y-%m-%d %H:%M}"
                table.add_row(key.id, key.label, ", ".join(key.scopes), key.user_id, made)
        Console().print(table)
    finally:
        store.close()


def key_revoke(key_id: Annotated[str, typer.Argument(help="As `kudos key list` names it.")]) -> None:
    """A revoked key is refused within two seconds, for ever."""
    from feedback.store import open_store
    from server.identity import revoke_key

    store = open_store(_settings())
    try:
        with store.write() as session:
            key = revoke_key(session, key_id)
    finally:
        store.close()
    if key is None:
        _refuse(f"there is no key {key_id}")
    print(f"{key_id} is revoked", file=sys.stderr)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _settings() -> Settings:
    from pydantic import ValidationError

    from server.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = "_".join(str(part) for part in fault["loc"]).upper()
            print(f"kudos: KUDOS_{name}={fault['input']!r}: {fault['msg']}", file=sys.stderr)
        raise SystemExit(2) from None


def _refuse(message: str) -> None:
    print(f"kudos: {message}", file=sys.stderr)
    raise SystemExit(2)
