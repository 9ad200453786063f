"""The dashboards as files: what Grafana would refuse, or draw on top of one another.

A real Prometheus is asked their expressions in tests/server/test_dashboards.py.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import DASHBOARDS, ROOT, panels

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
WIDTH = 24


def test_there_is_one_for_each_kind_of_reader() -> None:
    assert [path.stem for path in DASHBOARDS] == ["quality", "serving", "training"]
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)
    for board in boards:
        assert board["schemaVersion"] >= 36
        assert board["description"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_names_units_and_a_place_of_their_own(dashboard: Path) -> None:
    found = panels(dashboard)
    assert len({panel["id"] for panel in found}) == len(found)
    drawn = [panel for panel in found if panel["type"] != "row"]
    assert len({panel["title"] for panel in drawn}) == len(drawn)
    for panel in drawn:
        assert panel["title"]
        assert panel["description"].endswith((".", ":"))
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for panel in found:
        place = panel["gridPos"]
        assert min(place.values()) >= 0
        assert place["w"] > 0 < place["h"]
        assert place["x"] + place["w"] <= WIDTH
    for one, other in combinations(found, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
    down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
    return across and down


def test_what_is_provisioned_is_what_the_panels_ask() -> None:
    (source,) = load(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    (provider,) = load(PROVISIONING / "dashboards" / "kudos.yml")["providers"]
    compose = load(ROOT / "deploy" / "compose.yaml")
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in compose["services"]["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for asked in [panel, *panel.get("targets", [])] if panel["type"] != "row" else []:
                assert asked["datasource"] == {"type": source["type"], "uid": source["uid"]}, panel["title"]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
