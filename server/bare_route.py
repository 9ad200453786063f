"""Routes that are called, or whose responses send, thousands of times a second: FastAPI describes them, and what it
puts around a request (its router, its dependencies, its check of what is returned, a sender in each layer) is left out.
It costs more than a vote does, and again for each token.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

Handlers = Mapping[Any, ExceptionHandler]
"""As an application has them: what makes an exception's class, or a status, a response."""


class BareRoute(APIRoute):
    """Its endpoint takes the request and the path's parameters, as texts, and returns a Response, which nothing looks
    at on its way out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self.answer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, receive, send)
        response = await self.endpoint(request, **scope["path_params"])
        await response(scope, receive, send)


class BareRoutes:
    """In front of an application: answers what a bare route of its own is asked for, and passes all else on.

    Its bare routes must come before other routes that match the same addresses, as here they do in any case.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], handlers: Handlers) -> None:
        self._app = app
        # What nobody expected is for the layer that makes a 500 of it, outside of this one.
        self._handlers = {kind: handler for kind, handler in handlers.items() if kind not in (Exception, 500)}
        self._by_method: dict[str, list[tuple[re.Pattern[str], BareRoute]]] = defaultdict(list)
        for route in routes:
            if isinstance(route, BareRoute):
                for method in route.methods:
                    self._by_method[method].append((route.path_regex, route))

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        for address, route in self._by_method.get(scope.get("method", ""), ()):  # a lifespan has none
            if (found := address.match(scope["path"])) is not None:
                scope["route"], scope["path_params"] = route, found.groupdict()
                return self._answer(route, scope, receive, send)
        return self._app(scope, receive, send)

    async def _answer(self, route: BareRoute, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await route.answer(scope, receive, send)
        except Exception as error:  # as Starlette does: what has a handler is an answer
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None:
                raise
            response: Any = await handler(_Request(scope, receive, send), error)  # type: ignore[arg-type, misc]
            await response(scope, receive, send)


class _Request(Request):
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._first = _Headers(scope["headers"])

    @property
    def headers(self) -> Headers:
        return self._first


class _Headers(Headers):
    """Starlette's, which reads all of them for each that is asked for, with the first of each name at hand."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=raw)
        self._first = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(raw)}

    def get(self, key: str, default: Any = None) -> Any:
        return self._first.get(key.lower(), default)
