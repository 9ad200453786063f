"""HTTP on the wire: uvicorn's protocol, with a bound on a request's head and with errors of the one shape.

What is refused here never reaches the application: it has no request id, and no metric counts it.
"""

from __future__ import annotations

from http import HTTPStatus

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import error_body

MAX_HEAD_BYTES = 64 << 10
"""Beyond this much of a head that has not ended, the rest is not waited for: it would fill the memory."""

LINGER_SECONDS = 2.0
"""How long a client has to read why it was refused."""


class Protocol(HttpToolsProtocol):
    _head_bytes = 0
    _in_head = True
    _refused = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if not self._in_head or self._refused:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the address and the headers are larger than {MAX_HEAD_BYTES} bytes", "head_too_large")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not HTTP as the server understands it", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        body = orjson.dumps(error_body(status, message, code=code))
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._refused = True
        self.transport.write(head.encode() + body)
        # What is still on its way is read and dropped: a connection that is closed on it is reset, and the client would
        # see that in place of the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
