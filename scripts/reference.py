"""Writes docs/reference.md: every command and every KUDOS_ setting, as the code has them. `make reference` runs it.

A test compares the page with what this would write, so neither can change alone.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import deploy.settings  # noqa: E402 - after the path
import feedback.settings  # noqa: E402
import kudos  # noqa: E402
import server.settings  # noqa: E402
import trainer.config  # noqa: E402

PAGE = ROOT / "docs" / "reference.md"
SETTINGS: list[tuple[str, type[BaseSettings]]] = [
    ("Everywhere", feedback.settings.Settings),
    ("The server", server.settings.Settings),
    ("Rollouts", deploy.settings.RolloutSettings),
    ("The trainer that waits for votes", trainer.config.TrainerSettings),
]
OTHERS = {
    "KUDOS_EXTRA": "Read by `make`: `cpu` or `gpu`, the engine to install. Unset: gpu where `nvidia-smi` works.",
    "KUDOS_LEAN_LOGPROBS": "Set by `kudos serve` for its engines: see `server/lean_logprobs.py`. Leave it alone.",
    "KUDOS_PRELOADED": "Set by `kudos serve` for itself, when it restarts with its libraries loaded. Leave it alone.",
}


def docstrings(settings: type) -> dict[str, str]:
    """Field name: the string literal under it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def setting_rows(settings: type[BaseSettings]) -> Iterator[tuple[str, str, str]]:
    """(variable, default, meaning) of the fields that this class itself adds."""
    meanings = docstrings(settings)
    prefix = str(settings.model_config.get("env_prefix", ""))
    for name in settings.__annotations__:
        if name not in settings.model_fields:
            continue
        default = settings.model_fields[name].default
        if default is PydanticUndefined:
            shown = "~/.kudos" if name == "home" else "by machine"
        else:
            shown = "unset" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        yield f"{prefix}{name}".upper(), shown, meanings.get(name, "")


def commands(command: Any = None, path: str = "kudos") -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command that does something, in the order of the help."""
    command = command or typer.main.get_command(kudos.app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, below in inner.items():
        yield from commands(below, f"{path} {name}")


def command_lines(path: str, command: Any) -> Iterator[str]:
    summary = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
    yield f"| `{path}` | {_cell(summary)} | {_cell(', '.join(_parameters(command)))} |"


def _parameters(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield f"`{(parameter.metavar or parameter.name).upper()}`"
        elif parameter.name != "help":
            yield f"`{max(parameter.opts, key=len)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def render() -> str:
    lines = [
        "# Reference",
        "",
        "Written by `make reference` from the code. `kudos COMMAND --help` says more about each option.",
        "",
        "## Commands",
        "",
        "| command | what it does | takes |",
        "| --- | --- | --- |",
        *(line for path, command in commands() for line in command_lines(path, command)),
        "",
        "## Settings",
        "",
        "Environment variables, read once and checked when a command starts.",
    ]
    for title, settings in SETTINGS:
        lines += ["", f"### {title}", "", "| variable | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | {_cell(default)} | {_cell(text)} |" for name, default, text in setting_rows(settings)]
    lines += ["", "### Others", "", "| variable | meaning |", "| --- | --- |"]
    lines += [f"| `{name}` | {_cell(text)} |" for name, text in OTHERS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
