"""Who is asking, and what they may do: keys with scopes, and on loopback a signed cookie.

A key's secret is 256 random bits; only its SHA-256 is stored. One key may speak for many end users (`on_behalf`):
the header `X-Kudos-User` then names one, within the key's own name space, so that two products cannot act as each
other's users.

The cookie exists for a fresh install on one's own machine. It is accepted only where the server is addressed as this
machine (a page elsewhere that points its own name at 127.0.0.1 gets nothing), and writes with it must come from the
server's own pages.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from sqlmodel import Session, col, select
from starlette.requests import HTTPConnection

from feedback.ids import new_id
from feedback.schema import ApiKey, now
from feedback.store import Store
from server.errors import ApiError
from server.tickets import TICKET, holder

COOKIE = "kudos_user"
BROWSER = "browser"
SECRET_PREFIX = "sk-kudos-"  # noqa: S105 - what secrets begin with, so that leaked ones can be found
_COOKIE_SECONDS = 365 * 24 * 3600
_CACHE_SECONDS = 2.0
_USER_HEADER = re.compile(r"[\x21-\x7e]{1,128}")
_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Scope(StrEnum):
    CHAT = "chat"
    FEEDBACK = "feedback"
    OPERATOR = "operator"
    METRICS = "metrics"
    ON_BEHALF = "on_behalf"


@dataclass(frozen=True)
class Identity:
    user_id: str
    scopes: frozenset[str]
    actor: str  # who did it, for logs that operators read: a key's label, or "browser"
    new_cookie: str | None = None
    key_id: str | None = None  # None for a browser


@lru_cache(maxsize=1024)  # asked twice for each request
def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(
    session: Session, *, label: str, scopes: Iterable[str], user_id: str | None = None, secret: str | None = None
) -> tuple[ApiKey, str]:
    """The row and the secret; the secret is shown once and kept nowhere."""
    secret = secret or SECRET_PREFIX + secrets.token_urlsafe(32)
    key_id = new_id("key")
    key = ApiKey(
        id=key_id,
        sha256=digest_of(secret),
        label=label,
        scopes=sorted(Scope(scope).value for scope in scopes),
        user_id=user_id or f"u-{key_id}",
    )
    session.add(key)
    session.flush()
    return key, secret


def revoke_key(session: Session, key_id: str) -> ApiKey | None:
    key = session.get(ApiKey, key_id)
    if key is not None and key.revoked_at is None:
        key.revoked_at = now()
        session.add(key)
        session.flush()
    return key


def live_keys(session: Session) -> list[ApiKey]:
    return list(session.exec(select(ApiKey).where(col(ApiKey.revoked_at).is_(None)).order_by(col(ApiKey.created_at))))


def ensure_operator_key(store: Store, path: Path) -> None:
    """The key file of a fresh install: made once, mode 0600; the row follows the file."""
    if not path.exists():
        write_secret(path, SECRET_PREFIX + secrets.token_urlsafe(32) + "\n")
    secret = path.read_text().strip()
    with store.write() as session:
        known = session.exec(select(ApiKey).where(ApiKey.sha256 == digest_of(secret))).first()
        if known is None:
            create_key(session, label="operator", scopes=list(Scope), user_id="operator", secret=secret)


def write_secret(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def cookie_secret(path: Path) -> bytes:
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path.read_bytes()


class Identities:
    """Answers who a request is from. One per app; reads keys from the database, at most every two seconds each."""

    def __init__(self, store: Store, *, secret: bytes, browsers: bool, secure_cookies: bool = False) -> None:
        self._store = store
        self._secret = secret
        self._browsers = browsers
        self._secure_cookies = secure_cookies
        self._cache: dict[str, tuple[float, Identity | None]] = {}  # by the secret's digest: whom a live key speaks for

    def identify(self, connection: HTTPConnection, method: str) -> Identity:
        """Raises ApiError 401 or 403. Blocks on the database when a key is not cached."""
        header = connection.headers.get("authorization")
        if header is not None:
            return self._by_key(header, connection.headers.get("x-kudos-user"))
        if method == "GET" and TICKET in connection.query_params:
            return self._by_ticket(connection.query_params[TICKET], connection.url.path)
        if self._browsers and _is_local(connection):
            return self._by_cookie(connection, method)
        raise ApiError(401, "an API key is needed: Authorization: Bearer sk-kudos-...", code="missing_api_key")

    def knows(self, connection: HTTPConnection) -> bool:
        """Whether `identify` would answer at once, without the database."""
        header = connection.headers.get("authorization")
        if header is None:
            return TICKET not in connection.query_params
        cached = self._cache.get(digest_of(header.partition(" ")[2].strip()))
        return cached is not None and time.monotonic() - cached[0] <= _CACHE_SECONDS - 0.1

    def _by_key(self, header: str, user: str | None) -> Identity:
        scheme, _, secret = header.partition(" ")
        owner = self._find(secret.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise ApiError(401, "the API key is not known, or was revoked", code="invalid_api_key")
        if user is None:
            return owner
        if Scope.ON_BEHALF not in owner.scopes:
            raise ApiError(403, "X-Kudos-User needs a key with the scope on_behalf", code="missing_scope")
        if not _USER_HEADER.fullmatch(user):
            raise ApiError(
                422, "X-Kudos-User: 1 to 128 printable ASCII characters", param="X-Kudos-User", code="invalid_value"
            )
        return Identity(f"{owner.user_id}/{user}", owner.scopes, owner.actor, key_id=owner.key_id)

    def _by_ticket(self, given: str, path: str) -> Identity:
        with self._store.read() as session:
            key = holder(session, given, path)
        if key is None:
            raise ApiError(401, "this link is old: open it again from where it came", code="invalid_ticket")
        return _owner(key)

    def _find(self, secret: str) -> Identity | None:
        digest = digest_of(secret)
        at = time.monotonic()
        cached = self._cache.get(digest)
        if cached is None or at - cached[0] > _CACHE_SECONDS:
            with self._store.read() as session:
                key = session.exec(select(ApiKey).where(ApiKey.sha256 == digest)).first()
            if len(self._cache) > 10_000:  # guessed secrets must not fill the memory
                self._cache.clear()
            if key is not None and (key.revoked_at is not None or not hmac.compare_digest(key.sha256, digest)):
                key = None
            cached = self._cache[digest] = (at, None if key is None else _owner(key))
        return cached[1]

    def _by_cookie(self, connection: HTTPConnection, method: str) -> Identity:
        if method not in _SAFE_METHODS and not _is_same_origin(connection):
            raise ApiError(403, "a page of another site may not write here", code="cross_site")
        scopes = frozenset({Scope.CHAT.value, Scope.FEEDBACK.value, Scope.METRICS.value})
        user = self._verified(connection.headers.get("cookie", ""))
        if user is not None:
            return Identity(user, scopes, BROWSER)
        user = new_id("u")
        return Identity(user, scopes, BROWSER, new_cookie=self._cookie(user))

    def _verified(self, header: str) -> str | None:
        try:
            morsel = SimpleCookie(header).get(COOKIE)
        except Exception:  # isolates: http.cookies raises on what other applications of this host have set
            return None
        if morsel is None:
            return None
        user, _, signature = morsel.value.rpartition(".")
        return user if user and hmac.compare_digest(signature, self._signature(user)) else None

    def parting(self, identity: Identity) -> str | None:
        """A cookie that takes a browser's identity away: its next request is a new user's. None for who has a key."""
        return self._baked("", 0) if identity.actor == BROWSER else None

    def _signature(self, user: str) -> str:
        return hmac.new(self._secret, user.encode(), hashlib.sha256).hexdigest()

    def _cookie(self, user: str) -> str:
        return self._baked(f"{user}.{self._signature(user)}", _COOKIE_SECONDS)

    def _baked(self, value: str, seconds: int) -> str:
        secure = "; Secure" if self._secure_cookies else ""
        return f"{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _owner(key: ApiKey) -> Identity:
    return Identity(key.user_id, frozenset(key.scopes), key.label, key_id=key.id)


def _is_local(connection: HTTPConnection) -> bool:
    """A browser on this machine. Behind a proxy it is where the proxy says, whatever host the proxy asks for."""
    headers = connection.headers
    through = [*headers.getlist("x-forwarded-for"), *headers.getlist("x-real-ip")]
    clients = [client.strip() for said in through for client in said.split(",")]
    if "forwarded" in headers or not _LOCAL_NAMES.issuperset(clients):
        return False
    try:
        return urlsplit(f"//{connection.headers.get('host', '')}").hostname in _LOCAL_NAMES
    except ValueError:
        return False


def _is_same_origin(connection: HTTPConnection) -> bool:
    """Browsers always say where a write comes from; what says nothing is not a browser and has no one's cookie."""
    site = connection.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = connection.headers.get("origin")
    if origin is None:
        return True
    return urlsplit(origin).netloc == connection.headers.get("host")
