"""Rules and alerts, judged by the real promtool: they parse, each alert fires when it should, and not otherwise."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import PROMETHEUS, ROOT, alerts, dashboard_expressions, groups, recorded_in, rules

CASES: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alert_cases.yml").read_text())
ALERTS = {rule["alert"]: rule for rule in alerts()}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is not on PATH: install Debian's package prometheus"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "recording.yml", "alerts.yml")


def test_the_configuration_names_the_rules(promtool: str, tmp_path: Path) -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert {PROMETHEUS / name for name in config["rule_files"]} == set(PROMETHEUS.glob("*.yml")) - {
        PROMETHEUS / "prometheus.yml"
    }
    run(promtool, "check", "config", "--syntax-only", "prometheus.yml")


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    assert set(CASES[name]) == {"fires", "silent"}
    assert CASES[name]["fires"]["labels"]["severity"] == ALERTS[name]["labels"]["severity"]


def test_no_case_is_of_an_alert_that_is_gone() -> None:
    assert set(CASES) == set(ALERTS)


@pytest.mark.slow  # together; each takes a second or a few
@pytest.mark.parametrize("outcome", ["fires", "silent"])
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_when_it_should(name: str, outcome: str, promtool: str, tmp_path: Path) -> None:
    case = CASES[name][outcome]
    every = case.get("every", "1m")
    expected = []
    if outcome == "fires":
        expected = [{"exp_labels": case["labels"], "exp_annotations": ALERTS[name]["annotations"]}]
    path = tmp_path / "case.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(PROMETHEUS / "recording.yml"), str(PROMETHEUS / "alerts.yml")],
                # Left to itself promtool takes the groups in any order, and an alert would at times read what was
                # recorded one step ago.
                "group_eval_order": groups(),
                "evaluation_interval": every,
                "tests": [
                    {
                        "interval": every,
                        "input_series": [{"series": k, "values": str(v)} for k, v in case["series"].items()],
                        "alert_rule_test": [{"alertname": name, "eval_time": case["at"], "exp_alerts": expected}],
                    }
                ],
            }
        )
    )
    run(promtool, "test", "rules", str(path))


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    page, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert anchor in {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_what_is_read_from_rules_is_recorded_by_them() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    read = {name for rule in rules() for name in recorded_in(rule["expr"])}
    read |= {name for _, expression in dashboard_expressions() for name in recorded_in(expression)}
    assert read == recorded, "and nothing is recorded that nobody reads"
