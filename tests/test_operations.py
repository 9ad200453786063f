"""docs/operations.md as it is written: its commands exist, and what it backs up comes back."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlmodel import select

from deploy import policies
from feedback.schema import User
from feedback.settings import Settings
from feedback.store import Store, open_store
from scripts import reference
from tests.deploy.folders import make_model

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
WRITTEN = [
    *(line for block in BLOCKS for line in block.splitlines() if re.match(r"kudos |docker compose .* kudos ", line)),
    *re.findall(r"`(kudos [a-z][^`]*)`", TEXT),
]


@pytest.mark.parametrize("line", sorted(set(WRITTEN)))
def test_every_command_is_one_that_exists(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[len(words) - 1 - words[::-1].index("kudos") :]
    commands = dict(reference.commands())
    name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in commands), None)
    assert name is not None, line
    known = {option for parameter in commands[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def block(part: str) -> str:
    (found,) = (each for each in BLOCKS if part in each)
    return str(found)


def run(script: str, home: Path) -> None:
    done = subprocess.run(
        ["sh", "-euc", script],
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "KUDOS_HOME": str(home),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Writer(threading.Thread):
    """Writes for as long as it is let; `acknowledged` holds what is durable."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.acknowledged = store, 0
        self.begun, self.stopping = threading.Event(), threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            with self.store.write() as session:
                session.add(User(id=f"u{self.acknowledged}"))
            self.acknowledged += 1
            self.begun.set()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the page uses the sqlite3 shell")
def test_a_backup_made_while_people_chat_restores(tmp_path: Path) -> None:
    home, backup, restored = tmp_path / "home", tmp_path / "backup", tmp_path / "restored"
    backup.mkdir()
    store = open_store(Settings(home=home, database_url=None))
    with store.write() as session:
        version = policies.register_base(session, make_model(tmp_path / "base")).version
    (home / "policies").mkdir()
    (home / "policies" / "kept").write_text("weights")
    (home / "operator.key").write_text("secret")
    writer = Writer(store)
    writer.start()
    try:
        assert writer.begun.wait(60)
        before = writer.acknowledged
        run(block("VACUUM INTO").replace("/backup", str(backup)), home)
    finally:
        writer.stopping.set()
        writer.join()
        store.close()
    restore = re.sub(r"^pg_restore.*\n", "", block("pg_restore"), flags=re.MULTILINE)
    run(restore.replace("/backup", str(backup)).replace("v1-0a1b2c3d", version), restored)
    store = open_store(Settings(home=restored, database_url=None))
    with store.read() as session:
        users = {f"u{number}" for number in range(before)}
        assert users <= set(session.exec(select(User.id)))
    store.close()
    assert (restored / "policies" / "kept").read_text() == "weights"
    assert (restored / "operator.key").read_text() == "secret"
    assert restored.stat().st_mode & 0o077 == 0
    assert (restored / "kudos.db").stat().st_mode & 0o077 == 0
