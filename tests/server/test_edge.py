"""What clients get wrong, on purpose or not: each is refused in the one shape, by a 4xx, and costs nobody anything.

Around the fake engine: none of this may come as far as an engine.
"""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlmodel import col, func, select

from feedback.schema import Reply, Vote
from server.protocol import MAX_HEAD_BYTES
from tests.server.conftest import ForkedServer, Running, Zygote, ask

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def running(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = ForkedServer(zygote, tmp_path_factory.mktemp("edge") / "home")
    yield server.start()
    server.kill()
    server.store.close()


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def refused(answer: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    assert error["param"] == param
    assert answer.headers["content-type"] == "application/json"
    return dict(error)


def hello_with(text: str) -> bytes:
    """The chat body with more fields, spelled as they are: what no JSON library writes."""
    return json.dumps(HELLO).encode()[:-1] + b"," + text.encode() + b"}"


def nested(opening: str, inner: str, depth: int) -> str:
    closing = "}" if opening.startswith("{") else "]"
    return opening * depth + inner + closing * depth


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"null",
        b"[]",
        b'"hello"',
        json.dumps(HELLO).encode() + b" and more",
        json.dumps(HELLO).encode("utf-16"),
        b'\xef\xbb\xbf{"messages": []}',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\\udc00\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a\x00b"}]}',
        b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}',
        b'{"messages": [{"role": "user", "content": "\\\\\\u0000"}]}',
        hello_with('"temperature": NaN'),
        hello_with('"temperature": -Infinity'),
        hello_with('"temperature": 1e999'),
        hello_with('"max_tokens": 1' + "0" * 400),
        b"[" * 100_000,
        hello_with('"metadata": ' + nested('{"a":', "1", 500)),
        hello_with('"tools": [{"type": "function", "function": {"name": "x", "parameters": {"a":'
                   + nested("[", "1", 300) + "}}}]"),
        hello_with('"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": '
                   + nested('{"items":', "{}", 300) + "}}"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request(client: httpx.Client, body: bytes) -> None:
    error = refused(client.post(CHAT, content=body), 422)
    assert "body" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "64"}, "max_tokens"),
        ({"n": -3}, "n"),
        ({"n": True}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["ok", 5]}, "stop.1"),
        ({"stop": "x" * 257}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": "x"}] * 600}, "messages"),
        ({"conversation_id": "has a space"}, "conversation_id"),
        ({"regenerate_of": "\x7f"}, "regenerate_of"),
    ],
)
def test_a_field_that_is_wrong_is_named(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    error = refused(client.post(CHAT, json=HELLO | fields), 422, param)
    assert error["message"].startswith(f"{param}: ")
    assert "Value error" not in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 300_000},
        {"messages": [{}] * 300_000},
        {"messages": [{"role": "user", "content": [1] * 300_000}]},
        {"stop": [1] * 300_000},
        {"tools": [1] * 300_000},
        {str(at): 1 for at in range(60_000)},
    ],
    ids=["messages", "empty messages", "parts", "stop", "tools", "fields"],
)
def test_a_body_of_many_faults_stops_nobody(client: httpx.Client, fields: dict[str, Any]) -> None:
    """Each fault used to be gathered and told apart: seconds, in which no stream got a token."""
    started = time.monotonic()
    assert client.post(CHAT, json=HELLO | fields).status_code == 422
    assert time.monotonic() - started < 5.0, "0.1 s on a machine that has nothing else to do"


def test_of_a_key_that_comes_twice_the_last_counts(client: httpx.Client) -> None:
    answer = client.post(CHAT, content=b'{"messages": [], ' + json.dumps(HELLO).encode()[1:])
    assert answer.status_code == 200, answer.text


def test_an_escape_that_only_looks_like_nul_is_text(running: Running, client: httpx.Client) -> None:
    reply = ask(client, "what does \\u0000 mean? and \\\\u0000?")
    with running.store.read() as session:
        kept = session.get(Reply, reply["id"])
    assert kept is not None
    assert kept.messages[0]["content"] == "what does \\u0000 mean? and \\\\u0000?"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/merge-patch+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonx", 415),
        ("", 415),
    ],
)
def test_the_content_type(client: httpx.Client, said: str, status: int) -> None:
    answer = client.post(CHAT, content=json.dumps(HELLO), headers={"content-type": said})
    if status == 200:
        assert answer.status_code == 200, answer.text
    else:
        refused(answer, status, "content-type")


def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    refused(client.post(CHAT, content=b"x" * (1 << 21)), 413)
    refused(client.post(CHAT, content=iter([b"[" * (1 << 20)] * 3)), 413)  # chunked: no length is announced


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("TRACE", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/replies/x/feedback", "DELETE, PUT"),
        ("POST", "/health/live", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_the_wrong_method(client: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = client.request(method, path)
    error = refused(answer, 405)
    assert answer.headers["allow"] == allow
    assert allow in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat/completions"),  # a base URL without /v1
        ("POST", "/v1/chat/completion"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/"),
        ("GET", "/v1/conversations/"),
        ("DELETE", "/nowhere"),
        ("GET", "/../server/app.py"),
        ("GET", "/" + "x" * 5000),
        ("POST", "/" + "x" * 5000),
    ],
)
def test_an_address_that_has_nothing(client: httpx.Client, method: str, path: str) -> None:
    error = refused(client.request(method, path), 404)
    assert "/v1" in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("path", ["/v1/models", "/health/ready", "/", "/v1/conversations"])
def test_head_answers_as_get_does_without_a_body(client: httpx.Client, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]


def test_head_of_what_takes_no_get(client: httpx.Client) -> None:
    answer = client.head(CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/conversations/a%00b"),
        ("GET", "/v1/conversations?before=%00"),
        ("PUT", "/v1/replies/%00/feedback"),
        ("GET", "/v1/policies/v0%00"),
        ("GET", "/%00"),
    ],
)
def test_nul_in_an_address(client: httpx.Client, method: str, path: str) -> None:
    assert "NUL" in refused(client.request(method, path, json={"thumb": "up"}), 400)["message"]


@pytest.mark.parametrize("limit", ["-1", "0", "501", "x", "1e3", "99999999999999999999"])
def test_a_query_that_is_wrong(client: httpx.Client, limit: str) -> None:
    refused(client.get("/v1/conversations", params={"limit": limit}), 422, "limit")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"thumb": "sideways"}', "thumb"),
        (b'{"rating": 1.5}', "rating"),
        (b'{"rating": -0.1}', "rating"),
        (b'{"rating": true}', "rating"),
        (b'{"rating": NaN}', None),
        (b'{"reasons": ["%s"]}' % (b"x" * 65), "reasons.0"),
        (b'{"reasons": [%s"x"]}' % (b'"x",' * 16), "reasons"),
        (b'{"comment": "\\u0000"}', None),
        (b'{"comment": "%s"}' % (b"x" * 4001), "comment"),
        (b'{"thumbs": "up"}', "thumbs"),
        (b"{}", None),
    ],
)
def test_a_vote_that_is_none_leaves_no_trace(
    running: Running, client: httpx.Client, body: bytes, param: str | None
) -> None:
    reply = ask(client)
    refused(client.put(f"/v1/replies/{reply['id']}/feedback", content=body), 422, param)
    with running.store.read() as session:
        assert session.exec(select(func.count(col(Vote.id))).where(Vote.target_id == reply["id"])).one() == 0


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_an_idempotency_key_that_is_none(client: httpx.Client, key: str) -> None:
    path = f"/v1/replies/{ask(client)['id']}/feedback"
    refused(client.put(path, json={"thumb": "up"}, headers={"idempotency-key": key}), 422, "Idempotency-Key")


def wire(running: Running, head: bytes) -> httpx.Response:
    """The answer to bytes that no HTTP client sends."""
    address = httpx.URL(running.url)
    with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
        connection.sendall(head)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    start, _, rest = answer.partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    pairs = [line.split(": ", 1) for line in headers.decode().split("\r\n")]
    return httpx.Response(int(start.split()[1]), headers=[(name, value) for name, value in pairs], content=body)


@pytest.mark.parametrize(
    "head",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS on the plain port
        b"BREW /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models/\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET /v1/models/\x00 HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nx-a: b\x00c\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    ],
)
def test_what_is_no_http(running: Running, head: bytes) -> None:
    assert refused(wire(running, head), 400)["code"] == "invalid_http"


@pytest.mark.parametrize(
    "headers",
    [{"x-long": "x" * (4 * MAX_HEAD_BYTES)}, {f"x-{at}": "y" * 1000 for at in range(1000)}],
    ids=["one long header", "many headers"],
)
def test_a_head_that_is_too_large(running: Running, headers: dict[str, str]) -> None:
    # The last byte is never sent: whoever waits for it holds what came so far.
    head = "GET /v1/models HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert refused(wire(running, head.encode()), 431)["code"] == "head_too_large"


def test_a_head_of_ordinary_size_is_taken(client: httpx.Client) -> None:
    assert client.get("/v1/models", headers={"x-long": "x" * (MAX_HEAD_BYTES // 2)}).status_code == 200


def test_a_websocket_gets_plain_http(running: Running) -> None:
    upgrade = {"upgrade": "websocket", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13"}
    answer = httpx.get(f"{running.url}/health/live", headers={"connection": "upgrade, close", **upgrade}, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"live": True})


@pytest.mark.parametrize(
    ("headers", "status", "param"),
    [
        ({"x-kudos-user": b"\xff"}, 422, "X-Kudos-User"),
        ({"x-kudos-user": b"x" * 129}, 422, "X-Kudos-User"),
        ({"authorization": b"Bearer \xff\xfe"}, 401, None),
        ({"authorization": b"Bearer " + b"x" * 8000}, 401, None),
    ],
)
def test_headers_that_say_who_asks(client: httpx.Client, headers: Any, status: int, param: str | None) -> None:
    refused(client.get("/v1/models", headers=headers), status, param)


def test_none_of_it_was_a_fault_of_the_server(running: Running, request: pytest.FixtureRequest) -> None:
    """The last test of this file: whatever was sent before, no request failed and no reply is left over."""
    with running.store.read() as session:
        states = set(session.exec(select(Reply.state).distinct()))
    assert states <= {"complete"}
    assert running.metric("kudos_chat_streams_active") == 0
    assert running.metric("kudos_chat_requests_total", status="500") == 0
