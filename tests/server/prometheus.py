"""A real Prometheus for the tests: scrapes one server every second, by the project's own configuration and rules."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.monitoring import PROMETHEUS
from tests.server.conftest import Running, end, free_port, wait_for

START_SECONDS = 120.0


@dataclass
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30.0)
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body.get('error')}"
        return list(body["data"]["result"])

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def rules(self) -> list[dict[str, Any]]:
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30.0).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def prometheus_of(running: Running, key: str, folder: Path) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        reason = "prometheus is not on PATH: install Debian's package prometheus"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    (folder / "key").write_text(key)
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "key")
    job["static_configs"] = [{"targets": [running.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: found.ready() or process.poll() is not None, START_SECONDS, "Prometheus to be ready")
        assert process.poll() is None, (folder / "log").read_text()
        yield found
    finally:
        end(process)
