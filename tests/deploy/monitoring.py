"""The files that operators' tools read, and which metrics they name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))

VLLM_METRICS = {
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
}
"""vLLM's own, which a server around another engine does not have."""

_NAME = re.compile(r"\b(?:kudos|vllm)[_:][a-zA-Z0-9_:]+|\bup\b")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def _groups() -> list[dict[str, Any]]:
    files = (yaml.safe_load((PROMETHEUS / name).read_text()) for name in ("recording.yml", "alerts.yml"))
    return [group for file in files for group in file["groups"]]


def groups() -> list[str]:
    """Names, in the order in which one reads what another records."""
    return [group["name"] for group in _groups()]


def rules() -> list[dict[str, Any]]:
    return [rule for group in _groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return found


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """(dashboard/panel, expression), with Grafana's own variables filled in."""
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                yield f"{dashboard.stem}/{panel['title']}", target["expr"].replace("$__rate_interval", "1m")


def metrics_of(expression: str) -> set[str]:
    """What an expression reads from a scrape; what rules record is not among it."""
    return {name for name in _NAME.findall(_QUOTED.sub('""', expression)) if not name.startswith("kudos:")} - {"up"}


def recorded_in(expression: str) -> set[str]:
    return {name for name in _NAME.findall(_QUOTED.sub('""', expression)) if name.startswith("kudos:")}


def all_metrics() -> set[str]:
    expressions = [rule["expr"] for rule in rules()] + [expression for _, expression in dashboard_expressions()]
    return set().union(*map(metrics_of, expressions))
