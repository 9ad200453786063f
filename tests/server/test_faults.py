"""What fails around a server, and what its callers see. A fake engine, as a real one dies when it pleases."""

import fcntl
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.schema import Reply
from tests.server.conftest import ROOT, ForkedServer, Running, alive, ask, events, wait_for

Make = Callable[..., ForkedServer]
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def reply_of(running: Running, reply_id: str) -> Reply:
    with running.store.read() as session:
        reply = session.get(Reply, reply_id)
    assert reply is not None
    return reply


def test_a_dead_engine_tells_its_streams_and_is_started_again(forked: Make, tmp_path: Path) -> None:
    switch = tmp_path / "dead"
    server = forked(FAKE_ENGINE_DEAD=str(switch), FAKE_TOKEN_SECONDS="1.0")
    running = server.start()
    with running.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True}) as response:
            reader = events(response)
            first = next(reader)
            switch.touch()
            last = list(reader)[-1]
        assert last["error"]["code"] == "engine_dead"
        assert last["error"]["type"] == "server_error"
        failed = wait_for(lambda: (r := reply_of(running, first["id"])).state != "streaming" and r, 60)
        assert failed.state == "failed"
        assert client.put(f"/v1/replies/{failed.id}/feedback", json={"thumb": "up"}).status_code == 409
        wait_for(running.ready, 60, "the engine to be started again")
        assert ask(client, max_tokens=1)["choices"][0]["finish_reason"] == "stop"
    assert running.metric("kudos_engine_restarts_total") == 1


def test_an_engine_that_keeps_dying_ends_the_server(forked: Make, tmp_path: Path) -> None:
    switch = tmp_path / "dead"
    server = forked(FAKE_ENGINE_DEAD=str(switch), KUDOS_ENGINE_RESTARTS="2")
    server.start()

    def kill_again() -> bool:
        switch.touch()
        return not alive(server.process_id)

    wait_for(kill_again, 60, "the server to give up")
    assert "died 3 times in a row" in server.log()


@pytest.mark.slow
def test_sigterm_lets_streams_end_and_takes_no_new_ones(forked: Make) -> None:
    server = forked(FAKE_TOKEN_SECONDS="0.8", KUDOS_DRAIN_SECONDS="120")
    running = server.start()
    with running.client() as client, running.client() as other:
        other.get("/v1/models")
        with client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True}) as response:
            reader = events(response)
            first = next(reader)
            server.terminate()
            wait_for(lambda: other.get("/health/ready").status_code == 503, 60, "the server to drain")
            refused = other.post("/v1/chat/completions", json=HELLO)
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert other.get("/health/live").status_code == 200
            assert list(reader)[-1] == "[DONE]"
    wait_for(lambda: not alive(server.process_id), 60, "the server to end")
    assert reply_of(running, first["id"]).state == "complete"


def test_a_stream_that_outlives_the_drain_is_told(forked: Make) -> None:
    server = forked(FAKE_TOKEN_SECONDS="1.0", KUDOS_DRAIN_SECONDS="0.5")
    running = server.start()
    with (
        running.client() as client,
        client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True}) as response,
    ):
        reader = events(response)
        first = next(reader)
        server.terminate()
        last = list(reader)[-1]
    assert last["error"]["code"] == "stopping"
    wait_for(lambda: not alive(server.process_id), 60, "the server to end")
    assert reply_of(running, first["id"]).state == "incomplete"


@contextmanager
def busy_database(running: Running) -> Any:
    """Somebody else writes, and does not come to an end."""
    with (running.home / "kudos.db-writer").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
def test_a_busy_database_is_503_and_never_a_false_200(forked: Make) -> None:
    running = forked(KUDOS_WRITE_TIMEOUT_SECONDS="4").start()
    with running.client(timeout=30.0) as client:
        reply = ask(client)
        path = f"/v1/replies/{reply['id']}/feedback"
        with busy_database(running):
            vote = client.put(path, json={"thumb": "up"})
            assert vote.status_code == 503
            assert "retry-after" in vote.headers
            chat = client.post("/v1/chat/completions", json=HELLO)
            assert chat.status_code == 503, chat.text
            with client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True}) as response:
                told = response.read().decode()
            assert "[DONE]" not in told
            assert "word" not in told, "nothing is shown that is not durable"
            assert client.get("/health/live").status_code == 200
        answer = wait_for(
            lambda: (a := client.put(path, json={"thumb": "up"})).status_code == 200 and a, 30, "the vote to be taken"
        )
        assert answer.json()["outcome"] in ("accepted", "duplicate")
        assert ask(client)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.slow
def test_a_reply_that_ends_while_the_database_is_away_is_kept_when_it_is_back(forked: Make) -> None:
    running = forked(FAKE_TOKEN_SECONDS="0.1", KUDOS_WRITE_TIMEOUT_SECONDS="0.5").start()
    with running.client(timeout=30.0) as client:
        with client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True}) as response:
            read = events(response)
            reply_id = str(next(read)["id"])
            with busy_database(running):
                last = list(read)[-1]
                assert last["error"]["code"] == "storage_busy", "no [DONE] for what is not kept yet"
                time.sleep(14)  # longer than the ledger tries by itself, several times over
        reply = wait_for(
            lambda: (row := client.get(f"/v1/replies/{reply_id}").json())["state"] != "streaming" and row, 30, "its end"
        )
        assert (reply["state"], len(reply["text"].split())) == ("complete", 12)
        assert client.put(f"/v1/replies/{reply_id}/feedback", json={"thumb": "up"}).status_code == 200


def test_a_reader_that_stops_reading_is_given_up(forked: Make) -> None:
    running = forked(KUDOS_SEND_TIMEOUT_SECONDS="0.5", FAKE_TOKEN_SECONDS="0.05").start()
    body = json.dumps(HELLO | {"stream": True}).encode()
    host, port = running.url.removeprefix("http://").split(":")
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        reader.connect((host, int(port)))
        request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {running.operator_key}\r\n"
            f"content-length: {len(body)}\r\ncontent-type: application/json\r\n\r\n"
        )
        reader.sendall(request.encode() + body)
        # Small replies fit the kernel's buffers: what matters is that the server is not held up and counts it as ended.
        wait_for(lambda: running.metric("kudos_chat_streams_active") == 0, 60, "the stream to end")
    assert running.ready()


def test_streams_are_capped_per_user_and_in_all(forked: Make) -> None:
    # Streams that stay: their headers come with the first keepalive.
    slow = {"FAKE_TOKEN_SECONDS": "60", "KUDOS_KEEPALIVE_SECONDS": "0.2"}
    running = forked(**slow, KUDOS_MAX_STREAMS_PER_USER="2", KUDOS_MAX_STREAMS="3").start()
    with ExitStack() as open_streams:
        greedy, modest = (open_streams.enter_context(running.client(user)) for user in ("greedy", "modest"))

        def hold(client: httpx.Client) -> None:
            response = open_streams.enter_context(
                client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True})
            )
            assert response.status_code == 200

        hold(greedy)
        hold(greedy)
        third = greedy.post("/v1/chat/completions", json=HELLO)
        assert third.status_code == 429
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert "retry-after" in third.headers
        hold(modest)
        assert modest.post("/v1/chat/completions", json=HELLO).status_code == 503
        assert modest.post("/v1/comparisons", json=HELLO).status_code == 503


def test_keepalives_while_nothing_is_said(forked: Make) -> None:
    running = forked(FAKE_TOKEN_SECONDS="1.5", KUDOS_KEEPALIVE_SECONDS="0.2").start()
    body = HELLO | {"stream": True, "max_tokens": 1}
    with running.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = list(response.iter_lines())
    assert lines.count(": keepalive") >= 3
    assert lines[-2 if lines[-1] == "" else -1] == "data: [DONE]"


def test_a_port_that_is_taken_is_said_before_the_engine_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "kudos", "serve"],
            cwd=ROOT,
            env={"KUDOS_HOME": str(tmp_path), "KUDOS_PORT": str(port), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 2
    assert "KUDOS_PORT" in done.stderr


def test_a_setting_out_of_bounds_names_itself(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "kudos", "serve"],
        cwd=ROOT,
        env={"KUDOS_HOME": str(tmp_path), "KUDOS_PORT": "99999", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert "KUDOS_PORT" in done.stderr
    assert "99999" in done.stderr
    assert time.monotonic() - started < 200


def test_a_bad_port_in_the_database_url_is_not_shown(tmp_path: Path) -> None:
    """A setting that holds a password is never printed, not even when it is wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "kudos", "key", "list"],
        cwd=ROOT,
        env={"KUDOS_HOME": str(tmp_path), "KUDOS_DATABASE_URL": "mysql://me:hunter2@db/x", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_a_replica_says_what_it_holds(forked: Make, user: str) -> None:
    running = forked().start()
    with running.client(user) as client:
        version = ask(client)["system_fingerprint"]
        wanted = client.get("/v1/policies").json()["wanted"]
    assert wanted["holds"] == [version]
    assert httpx.get(f"{running.url}/health/ready", timeout=60).json()["serving"] == version
