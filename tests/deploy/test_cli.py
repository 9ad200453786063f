"""The operator's commands, on a real database and real folders."""

import json
from pathlib import Path

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner, Result

import deploy.cli
from deploy import matchups, policies
from deploy.gate import judge
from feedback.schema import Replica, Thumb, TrainingRun, TrainingSample
from feedback.settings import Settings
from feedback.store import open_store
from tests.deploy.folders import publish_adapter, publish_full
from tests.deploy.rows import serve
from tests.deploy.test_gate import GOOD

app = typer.Typer()
deploy.cli.register(app)


@pytest.fixture
def home(base: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A base, an accepted adapter, a refused one and a full checkpoint; returns their versions."""
    monkeypatch.setenv("KUDOS_HOME", str(root.parent))
    monkeypatch.delenv("KUDOS_DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    store = open_store(Settings())
    bad = judge(GOOD).__class__(accepted=False, refusals=["The win rate is 0.1 [sic] and must be above 0.5."], flags=[])
    with store.write() as session:
        parent = policies.register_base(session, base).version
        session.add(TrainingRun(id="run-1", last_vote_id=9))
        for vote in (1, 2, 3, 7):
            session.add(TrainingSample(run_id="run-1", vote_id=vote, user_id="ada", kind="pair", split="train"))
        made = [
            policies.register(
                session, publish_adapter(base, root, tmp_path, 1), parent=parent, run_id="run-1", report=GOOD,
                verdict=judge(GOOD),
            ),
            policies.register(
                session, publish_adapter(base, root, tmp_path, 2), parent=parent, report=GOOD, verdict=bad
            ),
            policies.register(session, publish_full(base, root, tmp_path, 3), parent=parent, verdict=judge(GOOD)),
        ]  # fmt: skip
    store.close()
    return [parent, *(policy.version for policy in made)]


def kudos(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_narrow_terminal_still_shows_whole_versions(home: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = kudos("policy", "list").stdout
    assert "…" not in shown
    assert all(version in shown for version in home)
    assert "accepted" in shown


def test_list_and_show(home: list[str]) -> None:
    listed = kudos("policy", "list").output
    assert all(version in listed for version in home)
    assert "stable 100%" in listed
    assert "0.700 [0.630, 0.760]" in listed
    shown = kudos("policy", "show", home[1]).output
    assert "4 pair (train); from 1 users" in shown
    assert "4: 1-3, 7" in shown
    assert "none yet" in shown
    assert "set harmless serving lower" in shown
    assert "The win rate is 0.1 [sic] and must be above 0.5." in kudos("policy", "show", home[2]).output


def test_errors_are_one_line(home: list[str]) -> None:
    result = kudos("policy", "show", "v9-00000000", code=1)
    assert result.stderr.strip() == "there is no policy 'v9-00000000'; `kudos policy list` names those that exist"
    assert "Traceback" not in result.output


def test_verify_reads_every_byte(home: list[str], root: Path) -> None:
    assert "fit for" in kudos("policy", "verify", home[1]).output
    assert "fit for" in kudos("policy", "verify", home[3]).output
    assert "the ones that were registered" in kudos("policy", "verify", home[0]).output
    path = root / home[1] / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert "Truncated: adapter_model.safetensors" in kudos("policy", "verify", home[1], code=1).stderr


def test_a_dry_run_says_what_the_command_then_does(home: list[str]) -> None:
    sentence = f"{home[1]} goes from 0% to 20% of users, beside {home[0]}."
    assert kudos("rollout", "start", home[1], "--share", "0.2", "--dry-run").output.strip() == f"Would: {sentence}"
    assert json.loads(kudos("rollout", "status", "--json").output)["candidate"] is None
    assert sentence in kudos("rollout", "start", home[1], "--share", "0.2").output
    status = json.loads(kudos("rollout", "status", "--json").output)
    assert (status["candidate"], status["share"]) == (home[1], 0.2)
    assert "canary 20%" in kudos("policy", "list").output


def test_the_steps_are_those_of_the_plan(home: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_ROLLOUT_STEPS", "[0.01, 0.02, 1]")
    assert "goes from 0% to 1%" in kudos("rollout", "start", home[1]).output
    assert "goes from 1% to 2%" in kudos("rollout", "advance").output


def test_up_and_back(home: list[str]) -> None:
    kudos("rollout", "start", home[1])
    assert "goes from 5% to 25%" in kudos("rollout", "advance").output
    assert "goes from 25% to 90%" in kudos("rollout", "advance", "--share", "0.9").output
    assert f"{home[1]} becomes the stable policy in place of {home[0]}" in kudos("rollout", "promote").output
    assert "leaves service" in kudos("rollout", "rollback", "--dry-run").output
    kudos("rollout", "rollback", "--reason", "complaints [of users]")
    status = kudos("rollout", "status").output
    assert "complaints [of users]" in status
    assert f"Stable {home[0]} serves 100% of users." in status
    assert "there is no rollout" in kudos("rollout", "rollback", code=1).stderr


def votes(home: list[str], share: float, thumb: Thumb) -> None:
    """Of thirty users on the candidate and of their share of others on the base, who like what they see."""
    store = open_store(Settings())
    with store.write() as session:
        for user in range(30):
            serve(session, f"c{user}", home[1], share, candidate=True, thumbs=[thumb])
        for user in range(round(30 * (1 - share) / share)):
            serve(session, f"s{user}", home[0], share, candidate=False, thumbs=[Thumb.UP])
    store.close()


def test_hold_and_resume(home: list[str]) -> None:
    assert "there is no rollout to hold" in kudos("rollout", "hold", code=1).stderr
    kudos("rollout", "start", home[1])
    assert f"Would: {home[1]} stays at 5% of users" in kudos("rollout", "hold", "--dry-run").output
    kudos("rollout", "hold", "--reason", "lunch")
    assert "held by cli" in json.loads(kudos("rollout", "status", "--json").output)["held"]
    assert "is held already" in kudos("rollout", "hold", code=1).stderr
    assert "its step at 5% of users begins anew" in kudos("rollout", "resume").output
    assert json.loads(kudos("rollout", "status", "--json").output)["held"] == ""
    assert "is not held" in kudos("rollout", "resume", code=1).stderr


def test_the_controller_goes_back_by_itself_and_on_where_it_may(
    home: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUDOS_ROLLOUT_MIN_MINUTES", "0")
    assert "there is nothing to watch" in kudos("rollout", "controller", "--once").output
    kudos("rollout", "start", home[1], "--share", "0.25")
    assert "nothing to compare" in kudos("rollout", "controller", "--once").output
    votes(home, 0.25, Thumb.UP)
    assert "may go on, by hand" in kudos("rollout", "controller", "--once").output
    monkeypatch.setenv("KUDOS_ROLLOUT_AUTOMATIC", "true")
    sentence = f"{home[1]} goes to 50% of users: no worse than {home[0]}"
    assert f"Would: {sentence}" in kudos("rollout", "controller", "--once", "--dry-run").output
    assert kudos("rollout", "controller", "--once").output.startswith(sentence)
    monkeypatch.setenv("KUDOS_ROLLOUT_AUTOMATIC", "false")
    votes(home, 0.5, Thumb.DOWN)
    status = kudos("rollout", "status").output
    assert "net votes per reply" in status
    assert f"Would: {home[1]} leaves service" in status
    body = json.loads(kudos("rollout", "status", "--json").output)
    assert body["decision"]["verdict"] == "roll_back"
    assert f"{home[1]} leaves service: net votes per reply" in kudos("rollout", "controller", "--once").output
    assert json.loads(kudos("rollout", "status", "--json").output)["candidate"] is None
    assert "rollback" in kudos("rollout", "status").output


def test_a_plan_that_cannot_be_is_one_line(home: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUDOS_ROLLOUT_STEPS", "[0.5, 0.25]")
    assert "KUDOS_ROLLOUT_STEPS" in kudos("rollout", "status", code=1).stderr
    assert "KUDOS_ROLLOUT_STEPS" in kudos("rollout", "simulate", code=2).stderr


def test_the_audit_names_a_row_that_was_changed(home: list[str]) -> None:
    kudos("rollout", "start", home[1])
    kudos("rollout", "advance")
    assert "2 events, each as it was written. The newest hash: " in kudos("rollout", "audit").output
    store = open_store(Settings())
    with store.write() as session:
        session.execute(text("UPDATE rollout_event SET share = 0.01 WHERE action = 'advance'"))
    store.close()
    assert "event 2 is broken: advance of rollout 1 by cli" in kudos("rollout", "audit", code=1).output


def test_a_simulation_is_a_table_and_one_json_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = kudos("rollout", "simulate", "--runs", "20", "--turns", "200", "--people", "60")
    body = json.loads(result.stdout)
    assert [one["scenario"] for one in body["scenarios"]][:2] == ["A/A", "10 points worse"]
    assert all(one["runs"] == 20 for one in body["scenarios"])
    assert "one heavy voter" in result.stderr


def test_a_full_checkpoint_says_that_it_swaps_the_base(home: list[str]) -> None:
    assert "base weights are swapped" in kudos("rollout", "start", home[3], "--dry-run").output
    assert "start it at share 1" in kudos("rollout", "start", home[3], "--share", "0.5", code=1).stderr


def test_the_gate_can_be_forced_only_with_a_reason(home: list[str]) -> None:
    assert "0.1 [sic]" in kudos("rollout", "start", home[2], code=1).stderr
    assert "needs a reason" in kudos("rollout", "start", home[2], "--force", code=1).stderr
    kudos("rollout", "start", home[2], "--force", "--reason", "a demonstration")
    assert "forced past the gate: a demonstration" in kudos("rollout", "status").output


def test_compare_and_the_live_matchup(home: list[str]) -> None:
    compared = kudos("policy", "compare", home[1], home[2]).output
    assert "kl nats" in compared
    assert "set helpful candidate" in compared
    assert json.loads(kudos("rollout", "status", "--json").output)["matchup"] is None
    kudos("policy", "compare", home[1], home[2], "--live", "--dry-run")
    assert json.loads(kudos("rollout", "status", "--json").output)["matchup"] is None
    kudos("policy", "compare", home[1], home[2], "--live")
    assert json.loads(kudos("rollout", "status", "--json").output)["matchup"] == home[1:3]


def test_the_matchup_command(home: list[str]) -> None:
    for wrong in ([], [home[1]], ["--off", home[1], home[2]], ["--off", "--automatic"]):
        assert "name two policies" in kudos("policy", "matchup", *wrong, code=2).stderr
    assert "there is no policy 'v99" in kudos("policy", "matchup", home[1], "v99-00000000", code=1).stderr
    assert "Would: Comparisons" in kudos("policy", "matchup", *home[1:3], "--dry-run").output
    assert json.loads(kudos("rollout", "status", "--json").output)["matchup"] is None
    kudos("policy", "matchup", *home[1:3])
    assert json.loads(kudos("rollout", "status", "--json").output)["matchup"] == home[1:3]
    assert "least known first" in kudos("policy", "matchup", "--automatic", *home[1:3]).output
    kudos("policy", "matchup", "--off")


def test_status_shows_replicas_and_their_problems(home: list[str]) -> None:
    store = open_store(Settings())
    with store.write() as session:
        session.add(
            Replica(id="r1", address="127.0.0.1:1", ready=True, holds=[home[0]], problems={home[1]: "Truncated: [x]"})
        )
        matchups.choose(session, None, None, "test")
    store.close()
    output = kudos("rollout", "status").output
    assert f"{home[1]}: Truncated: [x]" in output
    assert "ready" in output
    [replica] = json.loads(kudos("rollout", "status", "--json").output)["replicas"]
    assert replica["alive"] is True


def test_a_diff_shows_what_differs_and_nothing_else(home: list[str]) -> None:
    base, good, refused, full = home
    shown = kudos("policy", "diff", good, refused).stdout
    for words in ("accepted", "refused", "run-1", "samples: pair, train", "votes that it alone learned from"):
        assert words in shown
    assert "win rate" not in shown, "both were measured alike"
    assert "adapter" in kudos("policy", "diff", good, full).stdout
    assert "do not differ" in kudos("policy", "diff", base, base).stdout
    assert "there is no policy" in kudos("policy", "diff", base, "v9-none", code=1).stderr
