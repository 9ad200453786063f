"""Who may do what: every route against every scope, and the ways around it that must be closed."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.requests import HTTPConnection

from feedback.store import open_store
from server.identity import Identities, Scope, create_key
from server.settings import Settings
from tests.server.conftest import ROOT, Running, ask, wait_for

pytestmark = pytest.mark.engine

ANY = "chatcmpl-none"
ROUTES = [
    ("GET", "/v1/models", Scope.CHAT),
    ("GET", "/v1/models/x", Scope.CHAT),
    ("POST", "/v1/chat/completions", Scope.CHAT),
    ("POST", "/v1/comparisons", Scope.CHAT),
    ("GET", "/v1/conversations", Scope.CHAT),
    ("GET", "/v1/conversations/x", Scope.CHAT),
    ("PATCH", "/v1/conversations/x", Scope.CHAT),
    ("DELETE", "/v1/conversations/x", Scope.CHAT),
    ("GET", f"/v1/replies/{ANY}", Scope.CHAT),
    ("GET", "/v1/me", Scope.CHAT),
    ("GET", "/v1/me/export", Scope.CHAT),
    ("PUT", "/v1/me/consent", Scope.CHAT),
    ("DELETE", "/v1/me", Scope.CHAT),
    ("GET", "/v1/status", Scope.CHAT),
    ("PUT", f"/v1/replies/{ANY}/feedback", Scope.FEEDBACK),
    ("DELETE", f"/v1/replies/{ANY}/feedback", Scope.FEEDBACK),
    ("PUT", "/v1/comparisons/x/choice", Scope.FEEDBACK),
    ("DELETE", "/v1/comparisons/x/choice", Scope.FEEDBACK),
    ("GET", "/v1/policies", Scope.OPERATOR),
    ("GET", "/v1/policies/v0", Scope.OPERATOR),
    ("POST", "/v1/rollouts", Scope.OPERATOR),
    ("GET", "/v1/rollouts/current", Scope.OPERATOR),
    ("POST", "/v1/rollouts/current/advance", Scope.OPERATOR),
    ("POST", "/v1/rollouts/current/hold", Scope.OPERATOR),
    ("POST", "/v1/rollouts/current/resume", Scope.OPERATOR),
    ("POST", "/v1/rollouts/current/promote", Scope.OPERATOR),
    ("POST", "/v1/rollouts/current/rollback", Scope.OPERATOR),
    ("GET", "/v1/rollouts/events", Scope.OPERATOR),
    ("GET", "/v1/matchup", Scope.OPERATOR),
    ("PUT", "/v1/matchup", Scope.OPERATOR),
    ("GET", "/v1/training/runs", Scope.OPERATOR),
    ("POST", "/v1/training/runs", Scope.OPERATOR),
    ("GET", "/v1/training/runs/x", Scope.OPERATOR),
    ("GET", "/v1/training/runs/x/report", Scope.OPERATOR),
    ("GET", "/v1/leaderboard", Scope.OPERATOR),
    ("GET", "/v1/prompts", Scope.OPERATOR),
    ("POST", "/v1/prompts", Scope.OPERATOR),
    ("GET", "/v1/prompts/x", Scope.OPERATOR),
    ("GET", "/v1/prompts/use", Scope.OPERATOR),
    ("PUT", "/v1/prompts/use", Scope.OPERATOR),
    ("GET", "/metrics", Scope.METRICS),
]


def make_key(real: Running, *scopes: str, label: str = "test") -> tuple[str, str]:
    with real.store.write() as session:
        key, secret = create_key(session, label=label, scopes=scopes)
        return key.id, secret


def test_every_route_is_in_the_matrix() -> None:
    from server.app import MODULES

    routes = set()
    for module in MODULES:
        for route in module.router.routes:
            for method in route.methods:  # type: ignore[attr-defined]
                routes.add((method, route.path))  # type: ignore[attr-defined]
    listed = {(method, path) for method, path, _ in ROUTES}

    def shape(path: str) -> str:
        parts = path.split("/")
        known = {"x", ANY, "v0"}
        return "/".join("{}" if part in known or part.startswith("{") else part for part in parts)

    open_to_all = {("GET", "/health/live"), ("GET", "/health/ready")}
    assert {(m, shape(p)) for m, p in routes} - open_to_all == {(m, shape(p)) for m, p in listed}


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_opens_its_routes_and_no_others(real: Running, scope: Scope) -> None:
    _, secret = make_key(real, scope)
    with real.client(key=secret) as client:
        for method, path, needed in ROUTES:
            status = client.request(
                method, path, json={"not": "valid"} if method in ("POST", "PUT", "PATCH") else None
            ).status_code
            if needed == scope:
                assert status not in (401, 403), (method, path, status)
            else:
                assert status == 403, (method, path, status)
    # POST /v1/training/runs takes no body and was allowed for operators: take the request back
    (real.home / "train.request").unlink(missing_ok=True)


def test_no_key_a_wrong_key_and_a_revoked_key(real: Running) -> None:
    key_id, secret = make_key(real, "chat")
    strangers = [{"authorization": value} for value in ("Bearer sk-kudos-guess", "Bearer", "Basic abc", secret)]
    for headers in strangers:
        answer = httpx.get(f"{real.url}/v1/models", headers=headers, timeout=60)
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["type"] == "authentication_error"
    with real.client(key=secret) as client:
        assert client.get("/v1/models").status_code == 200
    done = subprocess.run(
        [sys.executable, "-m", "kudos", "key", "revoke", key_id],
        cwd=ROOT,
        env={"KUDOS_HOME": str(real.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is revoked" in done.stderr
    with real.client(key=secret) as client:
        wait_for(lambda: client.get("/v1/models").status_code == 401, 60, "the key to be refused")


def test_a_narrow_terminal_shows_whole_ids(real: Running) -> None:
    """`kudos key revoke` takes nothing less."""
    key_id, _ = make_key(real, "chat", "feedback", "on_behalf", label="a shop with a long name")
    done = subprocess.run(
        [sys.executable, "-m", "kudos", "key", "list"],
        cwd=ROOT,
        env={"KUDOS_HOME": str(real.home), "PATH": "/usr/bin:/bin", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert key_id in done.stdout


def test_only_a_key_with_on_behalf_speaks_for_others(real: Running) -> None:
    _, plain = make_key(real, "chat", "feedback")
    _, product = make_key(real, "chat", "feedback", "on_behalf")
    _, rival = make_key(real, "chat", "feedback", "on_behalf")
    with real.client("alice", key=plain) as client:
        assert client.get("/v1/models").status_code == 403
    with real.client("alice", key=product) as alice, real.client("bob", key=product) as bob:
        reply = ask(alice)
        path = f"/v1/replies/{reply['id']}/feedback"
        assert bob.put(path, json={"thumb": "up"}).status_code == 404
        assert alice.put(path, json={"thumb": "up"}).status_code == 200
        assert bob.get(f"/v1/conversations/{reply['conversation_id']}").status_code == 404
    with real.client("alice", key=rival) as client:  # another product's alice is another person
        assert client.put(path, json={"thumb": "up"}).status_code == 404
    product_of = {"authorization": f"Bearer {product}"}
    for odd in ("", "with space", "x" * 129):
        answer = httpx.get(f"{real.url}/v1/models", headers=product_of | {"x-kudos-user": odd}, timeout=60)
        assert answer.status_code == 422, odd


def test_the_secret_is_stored_nowhere(real: Running) -> None:
    _, secret = make_key(real, "chat")
    stored = b"".join(path.read_bytes() for path in real.home.glob("kudos.db*"))
    assert secret.encode() not in stored
    assert (real.home / "operator.key").stat().st_mode & 0o777 == 0o600
    assert (real.home / "cookie.secret").stat().st_mode & 0o777 == 0o600


def test_a_browser_is_a_user_by_its_cookie(real: Running) -> None:
    with httpx.Client(base_url=real.url, timeout=60) as browser:
        page = browser.get("/")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        cookie = page.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        origin = {"origin": real.url, "sec-fetch-site": "same-origin"}
        body = {"messages": [{"role": "user", "content": "Hello!"}]}
        reply = browser.post("/v1/chat/completions", json=body, headers=origin).json()
        path = f"/v1/replies/{reply['id']}/feedback"
        assert browser.put(path, json={"thumb": "up"}, headers=origin).status_code == 200
        assert len(browser.get("/v1/conversations").json()["data"]) == 1
        assert browser.get("/v1/policies").status_code == 403
        for elsewhere in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}, {"origin": "null"}):
            assert browser.put(path, json={"thumb": "down"}, headers=elsewhere).status_code == 403, elsewhere
        # A page whose own name was pointed at this machine is not this machine.
        assert browser.get("/v1/conversations", headers={"host": "evil.example"}).status_code == 401
        # Nor is who comes through a proxy on it, which may ask for it by its own name.
        for through, status in (
            ({"x-forwarded-for": "203.0.113.7"}, 401),
            ({"x-forwarded-for": "127.0.0.1, 203.0.113.7"}, 401),
            ({"x-real-ip": "203.0.113.7"}, 401),
            ({"forwarded": "for=203.0.113.7"}, 401),
            ({"x-forwarded-for": "127.0.0.1"}, 200),
        ):
            assert browser.get("/v1/conversations", headers=through).status_code == status, through
    with httpx.Client(base_url=real.url, timeout=60) as other:
        assert other.get("/v1/conversations").json()["data"] == []
    user, _, signature = browser.cookies["kudos_user"].rpartition(".")
    for forged in (f"{user}x.{signature}", f"{user}.{'0' * 64}", user, "operator.", "."):
        answer = httpx.get(f"{real.url}/v1/conversations", cookies={"kudos_user": forged}, timeout=60)
        assert answer.json()["data"] == []
        assert "set-cookie" in answer.headers, "a forged cookie is replaced"


def test_what_needs_the_database_is_not_asked_in_the_loop(tmp_path: Path) -> None:
    """There everybody's stream would wait for it; and anybody may send a ticket, or a key that nobody knows."""
    identities = Identities(open_store(Settings(home=tmp_path)), secret=b"secret", browsers=True)

    def knows(query: bytes = b"", **headers: str) -> bool:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        return identities.knows(HTTPConnection({"type": "http", "path": "/", "query_string": query, "headers": raw}))

    assert knows()
    assert not knows(b"ticket=anything")
    assert not knows(authorization="Bearer sk-kudos-guessed")


def test_elsewhere_than_loopback_it_starts_only_with_a_key(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kudos", "serve"],
        cwd=ROOT,
        env={"KUDOS_HOME": str(tmp_path), "KUDOS_HOST": "0.0.0.0", "KUDOS_PORT": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert "kudos key create" in done.stderr
