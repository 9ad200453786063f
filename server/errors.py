"""What can go wrong in the server.

ServerError
├── ApiError             carries the status and the one error shape that clients see
│   └── FilterFailed     the safety filter could not check a text, which is therefore not let through
├── BadConfiguration     the server refuses to start; the message names the mend
├── Unfoldable           an adapter stays an adapter: what it is, or the disk, does not allow more
└── EngineError          the engine failed
    ├── EngineDead       it is gone; every stream ends and it is started again
    └── RequestRefused   it did not take this request; others are fine
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServerError(Exception):
    pass


class ApiError(ServerError):
    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


class FilterFailed(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(500, message, code="safety_failed")


class BadConfiguration(ServerError):
    pass


class Unfoldable(ServerError):
    pass


class EngineError(ServerError):
    pass


class EngineDead(EngineError):
    pass


class RequestRefused(EngineError):
    pass


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The one shape of an error, in a response and in a stream."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
