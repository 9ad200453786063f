"""The HTTP application around the services: routes, the one shape of errors, and what every response carries."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, MutableMapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Match, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.errors import DeployError
from feedback.errors import FeedbackError, StorageError
from feedback.ids import new_id
from server import metrics, openapi
from server.api import (
    chat,
    comparisons,
    conversations,
    me,
    policies,
    prompts,
    replies,
    rollouts,
    status,
    training,
    votes,
)
from server.bare_route import BareRoutes
from server.errors import ApiError, error_body
from server.identity import Identity
from server.services import Services

log = logging.getLogger("kudos.http")

WEB = Path(__file__).parent / "web"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types kudos"  # one policy, in web/markup.js
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


_SECURITY_RAW = [(name.encode(), value.encode()) for name, value in _SECURITY.items()]

MODULES = (votes, chat, comparisons, replies, conversations, me, policies, rollouts, prompts, training, status)


def make_app(services: Services) -> FastAPI:
    # Without FastAPI's own pages, which load scripts from elsewhere.
    app = FastAPI(
        title="kudos",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    for module in MODULES:
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=WEB), name="static")
    app.add_api_route("/ops", _operators_page, include_in_schema=False)
    # What no route has is the page's. A mount would also take a route's path with another method, which is 405.
    app.router.default = Page(directory=WEB, html=True)
    app.openapi = partial(openapi.describe, app)  # type: ignore[method-assign]  # as FastAPI documents it
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(FeedbackError, _known_error)
    app.add_exception_handler(DeployError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(BareRoutes, routes=app.routes, handlers=app.exception_handlers)
    app.add_middleware(Edge, services=services)  # around the other
    return app


async def _operators_page() -> FileResponse:
    return FileResponse(WEB / "ops.html")  # anybody's: what it shows, it asks for with an operator's key


class Page(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """What is not there is 404 with any method: a client whose base URL lacks /v1 is not to hear of methods."""
        if scope["method"] != "GET":
            try:
                _, found = await asyncio.to_thread(self.lookup_path, path)
            except (OSError, ValueError):  # too long, or no path at all
                found = None
            if found is None:
                raise HTTPException(404)
        return await super().get_response(path, scope)


class Edge:
    """Around every request: its id, its cookie, the headers that protect the page, and its count."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._series, self._numbers = new_id("req"), count(1)  # nobody need be unable to guess the name of a request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {
                **scope,
                "method": "GET",
            }  # what a GET answers; the body is dropped below us, where the method is known
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{self._series}-{next(self._numbers)}"
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        if scope["path"] == "/":
            await self._meet(HTTPConnection(scope), state)
        answered = 0

        def sending(message: Message) -> Awaitable[None]:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                raw = list(message.get("headers", ()))
                said = {name for name, _ in raw}
                raw += [each for each in _SECURITY_RAW if each[0] not in said]
                raw.append((b"x-request-id", request_id.encode()))
                headers = MutableHeaders(raw=raw)
                cookie = self._cookie(state.get("identity"), answered)
                if cookie is not None:
                    headers.append("set-cookie", cookie)
                allowance = state.get("allowance")
                if allowance is not None:
                    headers.update(allowance.headers())
                message = {**message, "headers": raw}
            return send(message)

        try:
            if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
                refused = error_body(400, "the address has a NUL character, which no id holds", code="invalid_value")
                await JSONResponse(refused, status_code=400)(scope, receive, sending)
                return
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            status = str(state.get("ended_as") or answered or 499)
            metrics.request_series(route, status, state.get("track", metrics.NO_TRACK)).inc()

    def _cookie(self, identity: Identity | None, status: int) -> str | None:
        if identity is None:
            return None
        if status == HTTPStatus.GONE:  # an operator erased this user, whose browser could not be told
            return self._services.identities.parting(identity)
        return identity.new_cookie

    async def _meet(self, connection: HTTPConnection, state: MutableMapping[str, Any]) -> None:
        """A browser gets its cookie with the page, so that the page's first calls are all one user's."""
        if connection.headers.get("sec-fetch-site") == "cross-site":
            return
        with suppress(ApiError, FeedbackError):  # with keys only, or without its database, the page asks for one
            state["identity"] = await self._services.who(connection, "GET")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(
        error_body(error.status, error.message, code=error.code, param=error.param),
        status_code=error.status,
        headers=error.headers,
    )


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FeedbackError | DeployError)
    code = getattr(error, "code", None) or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    headers = {"retry-after": "1"} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    if isinstance(error, StorageError):
        log.error("storage: %s", error)
    return JSONResponse(error_body(error.status, str(error), code=code), status_code=error.status, headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])  # without "query", "path" or "header"
    body = error_body(422, f"{param}: {first['msg']}", code="invalid_value", param=param)
    return JSONResponse(body, status_code=422)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code, headers = str(error.detail), None, error.headers
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = (
            f"there is nothing at {request.url.path[:200]}; the API begins with /v1, and /openapi.json describes it"
        )
        code = "not_found"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allow = _methods(request)
        message, code, headers = f"{request.url.path[:200]} takes {allow}", "method_not_allowed", {"allow": allow}
    return JSONResponse(
        error_body(error.status_code, message, code=code), status_code=error.status_code, headers=headers
    )


def _methods(request: Request) -> str:
    """What this address takes. Starlette names only those of the first route that has it."""
    found = {
        method
        for route in request.app.routes
        if isinstance(route, Route | APIRoute) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    if not found or "GET" in found:
        found |= {"GET", "HEAD"}
    return ", ".join(sorted(found))


async def _unexpected(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "")
    log.error("request %s failed", request_id, exc_info=error)
    return JSONResponse(
        error_body(500, f"something went wrong; request {request_id}", code="internal"),
        status_code=500,
        headers={"x-request-id": request_id},  # this response does not pass through Edge
    )
