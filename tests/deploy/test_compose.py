"""The containers as files: what can be checked without running them. They are not run here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PINNED = re.compile(r"[a-z0-9/._-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9]+)*")


def test_the_four_are_there() -> None:
    assert set(SERVICES) == {"kudos", "postgres", "prometheus", "grafana"}


def test_compose_itself_takes_the_file(tmp_path: Path) -> None:
    file = DEPLOY / "compose.yaml"
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], check=False).returncode:
        compose = ["docker", "compose"]
    elif shutil.which("docker-compose"):  # Debian's, which is older than a project's `name`
        compose = ["docker-compose"]
        unnamed = tmp_path / "compose.yaml"
        unnamed.write_text("".join(line for line in file.open() if not line.startswith("name:")))
        file = unnamed
    else:
        pytest.skip("docker compose is not installed (Debian: docker-compose)")
    command = [*compose, "--project-directory", str(DEPLOY), "-f", str(file), "config"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert set(yaml.safe_load(said.stdout)["services"]) == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_open_to_this_machine_alone(name: str) -> None:
    service = SERVICES[name]
    assert PINNED.fullmatch(service["image"]), service["image"]
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(check)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for other in service.get("depends_on", []):
        assert other in SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source, target, *mode = mount.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (DEPLOY / source).is_dir(), source
            assert mode == ["ro"], "a container does not write into the project"
        else:
            assert source in COMPOSE["volumes"]


def test_no_secret_is_in_the_clear() -> None:
    for name, service in SERVICES.items():
        for variable, text in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|_KEY", variable):
                assert variable.endswith("FILE"), f"{name}: {variable}"
                assert text.removeprefix("/run/secrets/") in service["secrets"], f"{name}: {variable}"
            assert not re.search(r"://[^/@]*:[^/@]*@", str(text)), f"{name}: {variable} holds a password"
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deploy/secrets/" in ignored
    assert "deploy/secrets" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    operations = (ROOT / "docs" / "operations.md").read_text()
    for secret in COMPOSE["secrets"].values():
        path = secret["file"].removeprefix("./")
        assert path.startswith("secrets/")
        assert f"> deploy/{path}" in operations, "how it is made is written down"


def test_prometheus_reads_the_key_that_it_is_given() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["authorization"]["credentials_file"].removeprefix("/run/secrets/") in SERVICES["prometheus"]["secrets"]
    ((target,),) = (each["targets"] for each in job["static_configs"])
    host, port = target.split(":")
    assert host in SERVICES
    assert SERVICES[host]["ports"][0].endswith(f":{port}")


def test_the_image_is_built_from_what_is_here() -> None:
    build = SERVICES["kudos"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT.resolve()
    assert (ROOT / build["dockerfile"]).is_file()
    text = (ROOT / build["dockerfile"]).read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert PINNED.fullmatch(base)
    assert base.startswith("python:3.11."), "the pins are for Python 3.11"
    assert "sh scripts/install.sh run" in text
    assert set(build["args"]) <= set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert text.index("USER kudos") < text.index("ENTRYPOINT")
    (home,) = (mount.split(":")[1] for mount in SERVICES["kudos"]["volumes"])
    assert f"VOLUME {home}\n" in text
    assert (DEPLOY / "entrypoint.sh").is_file()


@pytest.mark.postgres
def test_the_entrypoint_hands_the_password_to_libpq(tmp_path: Path, postgres_url: str) -> None:
    password = tmp_path / "password"
    password.write_text("not needed here\n")
    done = subprocess.run(
        ["sh", DEPLOY / "entrypoint.sh", "db", "migrate", "--json"],
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KUDOS_HOME": str(tmp_path),
            "KUDOS_DATABASE_URL": postgres_url,
            "PGPASSWORD_FILE": str(password),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert '"changed": true' in done.stdout
