"""`kudos doctor` on homes that are fine and homes that are not: what is broken has its mend named, and it exits 1."""

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kudos
from deploy import policies
from feedback.settings import Settings as FeedbackSettings
from feedback.store import open_store
from server.identity import ensure_operator_key, live_keys, revoke_key
from server.settings import Settings

Findings = dict[str, list[dict[str, str]]]


def examined(home: Path, monkeypatch: pytest.MonkeyPatch, code: int, **settings: str) -> Findings:
    for name, value in {"HOME": str(home), "PORT": "0", **settings}.items():
        monkeypatch.setenv(f"KUDOS_{name}", value)
    monkeypatch.delenv("KUDOS_DATABASE_URL", raising=False)
    done = CliRunner().invoke(kudos.app, ["doctor", "--json"])
    assert done.exit_code == code, done.output
    report = json.loads(done.stdout)
    assert report["ok"] is (code == 0)
    found: Findings = {}
    for each in report["findings"]:
        found.setdefault(each["check"], []).append(each)
        assert each["level"] != "broken" or each["mend"] or "run `kudos" in each["said"], each
    return found


def test_a_home_that_does_not_exist_yet_is_fine_and_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(tmp_path / "home", monkeypatch, 0)
    assert [each["level"] for each in found["home"] + found["database"]] == ["note", "note"]
    assert not (tmp_path / "home").exists()


def test_each_thing_that_is_amiss_is_named_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, secret = tmp_path / "home", tmp_path / "home" / "operator.key"
    home.mkdir(mode=0o700)
    store = open_store(FeedbackSettings(home=home))
    ensure_operator_key(store, secret)
    with store.write() as session:
        base = policies.register_base(session, Settings().model_folder())
    found = examined(home, monkeypatch, 0)
    assert found["policies"] == [{"check": "policies", "level": "ok", "said": f"{base.version} is whole", "mend": ""}]
    assert found["keys"][0]["said"] == "1 in use"
    assert found["database"][0]["level"] == "ok"

    secret.chmod(0o644)
    with store.write() as session:
        row = policies.get(session, base.version)
        row.path = str(tmp_path / "elsewhere")
        session.add(row)
        revoke_key(session, live_keys(session)[0].id)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = examined(home, monkeypatch, 1, PORT=port, MODEL=str(tmp_path), ROLLOUT_STEPS="[0.5]")
    said = {name: " ".join(each["said"] + " " + each["mend"] for each in findings) for name, findings in found.items()}
    assert f"chmod 600 {secret}" in said["home"]
    assert "its weights are not the ones it had" in said["policies"]
    assert "was revoked" in said["keys"]
    assert "no config.json" in said["model"]
    assert "KUDOS_PORT" in said["port"]
    assert "KUDOS_ROLLOUT_STEPS" in said["rollout"]
    store.close()

    (home / "kudos.db").write_bytes(b"not a database")
    assert examined(home, monkeypatch, 1, HOST="0.0.0.0")["database"][0]["level"] == "broken"
