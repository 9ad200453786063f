"""Routes that are called, or whose responses send, thousands of times a second: FastAPI describes them, Starlette calls
them."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class BareRoute(APIRoute):
    """Its endpoint takes the request and the path's parameters, as texts, and returns a Response, which nothing looks
    at on its way out. FastAPI's dependencies, and its check of what is returned, cost more than a vote does;
    what it puts around a response costs again for each token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = await self.endpoint(request, **request.path_params)
        await response(scope, receive, send)
