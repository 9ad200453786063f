"""The commands, run as people run them: in a process of their own, against a real database."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text as sql

from feedback.settings import Settings
from feedback.store import Store
from tests.feedback.test_hh import hh_file, hh_line

ROOT = Path(__file__).parents[2]
_MAIN = "import typer, feedback.cli; app = typer.Typer(); feedback.cli.register(app); app()"


@pytest.fixture
def environment(empty_settings: Settings) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KUDOS_")}
    kept |= {"KUDOS_HOME": str(empty_settings.home), "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    if empty_settings.database_url is not None:
        kept["KUDOS_DATABASE_URL"] = empty_settings.database
    return kept


def kudos(
    environment: dict[str, str], *arguments: str, code: int = 0, given: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        env=environment, input=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_from_an_empty_database_to_an_export(environment: dict[str, str], tmp_path: Path) -> None:
    missing = json.loads(kudos(environment, "db", "check", "--json", code=1).stdout)
    assert missing["ok"] is False
    assert any("kudos db migrate" in problem for problem in missing["problems"])
    assert "migrated to" in kudos(environment, "db", "migrate").stdout
    assert json.loads(kudos(environment, "db", "migrate", "--json").stdout)["changed"] is False
    assert json.loads(kudos(environment, "db", "check", "--json").stdout)["ok"] is True

    path = hh_file(tmp_path / "pairs.jsonl.gz", 25)
    done = kudos(environment, "feedback", "import", "--format", "hh", str(path))
    assert "25 imported, 0 changed, 0 there already, 0 skipped" in done.stdout
    again = json.loads(kudos(environment, "feedback", "import", str(path), "--json").stdout)
    assert (again["imported"], again["already_there"]) == (0, 25)

    found = json.loads(kudos(environment, "feedback", "stats", "--json").stdout)
    assert (found["votes"], found["replies"]) == (25, {"complete": 50})
    assert "25" in kudos(environment, "feedback", "stats").stdout

    output = tmp_path / "out.jsonl"
    kudos(environment, "feedback", "export", "--format", "preference", "-o", str(output))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(row["chosen"][0]["content"] for row in rows) == sorted(f"good {number}" for number in range(25))
    streamed = kudos(environment, "feedback", "export", "--format", "preference").stdout
    assert streamed == output.read_text()
    assert kudos(environment, "feedback", "export", "--format", "unpaired").stdout == ""
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".partial") == []


def test_a_bad_line_is_named_and_a_bad_file_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(hh_line("q", "a", "b") + "{nope\n")
    done = kudos(environment, "feedback", "import", str(path))
    assert "pairs.jsonl:2: skipped: not JSON" in done.stderr
    assert "1 imported" in done.stdout
    failed = kudos(environment, "feedback", "import", str(tmp_path / "absent.jsonl"), code=1)
    assert "error: absent.jsonl" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_user_is_erased_when_somebody_says_yes(environment: dict[str, str], tmp_path: Path) -> None:
    kudos(environment, "feedback", "import", str(hh_file(tmp_path / "pairs.jsonl", 3)))
    user = "hh-" + hashlib.sha256(b"question 1").hexdigest()[:32]

    def replies() -> int:
        return int(json.loads(kudos(environment, "feedback", "stats", "--json").stdout)["replies"].get("complete", 0))

    unsure = kudos(environment, "feedback", "erase", user, code=1, given="n\n")
    assert "1 conversations, 2 replies, 1 votes, for ever?" in unsure.stderr
    assert replies() == 6
    done = kudos(environment, "feedback", "erase", user, given="y\n")
    assert f"erased {user}: 1 conversations, 2 replies, 1 votes" in done.stdout
    assert "policies that learned from this user: none" in done.stdout
    assert replies() == 4
    again = kudos(environment, "feedback", "erase", user, "--yes", "--json")
    assert json.loads(again.stdout) == {"user_id": user, "conversations": 0, "replies": 0, "votes": 0, "policies": []}
    for flags in ([], ["--yes"]):
        unknown = kudos(environment, "feedback", "erase", "eve", *flags, code=1)
        assert unknown.stderr == "error: there is no user eve\n"


@pytest.mark.slow
def test_conversations_expire_after_the_days_that_are_set(environment: dict[str, str], tmp_path: Path) -> None:
    kudos(environment, "feedback", "import", str(hh_file(tmp_path / "pairs.jsonl", 2)))
    assert "KUDOS_RETENTION_DAYS" in kudos(environment, "feedback", "expire", code=2).stderr
    kept = kudos(environment | {"KUDOS_RETENTION_DAYS": "30"}, "feedback", "expire")
    assert kept.stdout == "deleted 0 conversations, 0 replies, 0 votes\n"
    store = Store(environment.get("KUDOS_DATABASE_URL", f"sqlite:///{environment['KUDOS_HOME']}/kudos.db"))
    with store.write() as session:
        session.execute(sql("UPDATE conversation SET updated_at = :at"), {"at": "2020-01-01 00:00:00+00:00"})
    store.close()
    gone = kudos(environment, "feedback", "expire", "--days", "30", "--json")
    assert json.loads(gone.stdout) == {"conversations": 2, "replies": 4, "votes": 2}


def test_an_unsupported_database_is_one_line(environment: dict[str, str]) -> None:
    failed = kudos(environment | {"KUDOS_DATABASE_URL": "mysql://u:hunter2@host/db"}, "feedback", "stats", code=1)
    assert "error: database_url" in failed.stderr
    assert "hunter2" not in failed.stderr + failed.stdout


def test_a_database_that_is_not_there_is_one_line(environment: dict[str, str]) -> None:
    unreachable = environment | {"KUDOS_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/db"}
    failed = kudos(unreachable, "feedback", "stats", code=1)
    assert "error:" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "hunter2" not in failed.stderr + failed.stdout
