"""Real servers for this folder's tests: one with the real engine for the session, and forked ones to be killed."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.settings import Settings as FeedbackSettings
from feedback.store import Store, open_store
from server.settings import Settings

ROOT = Path(__file__).parents[2]
START_SECONDS = float(os.environ.get("KUDOS_TEST_START_SECONDS", "240"))  # a busy machine imports for minutes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


@dataclass
class Running:
    """A server as its callers see it."""

    url: str
    home: Path
    store: Store
    process_id: int

    @property
    def operator_key(self) -> str:
        return (self.home / "operator.key").read_text().strip()

    def client(self, user: str | None = None, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {key or self.operator_key}"}
        if user is not None:
            headers["x-kudos-user"] = user
        return httpx.Client(base_url=self.url, headers=headers, timeout=options.pop("timeout", 60.0), **options)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """The sum over every series of the name that has these labels."""
        with self.client() as client:
            text = client.get("/metrics").text
        total = 0.0
        for line in text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def end(process: subprocess.Popen[bytes], grace_seconds: float = 60.0) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(60)


class RealServer:
    """`kudos serve` with the real engine and the built-in model; can be killed and started again on its home."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.environment = os.environ | {
            "KUDOS_HOME": str(home),
            "KUDOS_PORT": str(self.port),
            "KUDOS_KV_CACHE_GIB": "1",
            "KUDOS_ENGINE_THREADS": "1",
            # Nothing may be compiled while people chat: it would stop every stream for seconds.
            "CXX": "/no/such/compiler",
            "TORCHINDUCTOR_CACHE_DIR": str(home / "compiled"),
            **environment,
        }
        self.log = home / "test-server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Running:
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kudos", "serve"],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(
            f"http://127.0.0.1:{self.port}",
            self.home,
            open_store(FeedbackSettings(home=self.home)),
            self.process.pid,
        )
        deadline = time.monotonic() + START_SECONDS
        while not running.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"the server did not get ready:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.25)
        return running

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int | None:
        return None if self.process is None else end(self.process)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = RealServer(tmp_path_factory.mktemp("real") / "home")
    try:
        yield server.start()
    finally:
        server.end()


@dataclass
class Zygote:
    process: subprocess.Popen[str]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fork(self, **environment: str) -> tuple[int, int]:
        """The new process's id, and a descriptor that means this process even when its id is used again."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(environment) + "\n")
            self.process.stdin.flush()
            process_id = int(self.process.stdout.readline())
            return process_id, os.pidfd_open(process_id)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.zygote"],
        cwd=ROOT,
        env=os.environ | {"KUDOS_MODEL": str(Settings().model_folder()), "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    zygote = Zygote(process)
    try:
        yield zygote
    finally:
        process.kill()  # its children die with it
        process.wait()


class ForkedServer:
    """A real server around the fake engine, started in a fraction of a second and killed as often as one likes."""

    def __init__(self, zygote: Zygote, home: Path, **environment: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.zygote, self.home, self.port = zygote, home, free_port()
        self.environment = {
            "KUDOS_HOME": str(home),
            "KUDOS_PORT": str(self.port),
            "LOG": str(home / "test-server.log"),
            **environment,
        }
        self.process_id, self._handle = 0, -1
        self.store = open_store(FeedbackSettings(home=home))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> Running:
        self.process_id, self._handle = self.zygote.fork(**self.environment)
        running = Running(self.url, self.home, self.store, self.process_id)
        if wait:
            wait_for(running.ready, START_SECONDS / 4, "the forked server to be ready")
        return running

    def kill(self) -> None:
        if self._handle < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        select.select([self._handle], [], [], 30.0)  # readable when the process has ended
        os.close(self._handle)
        self._handle = -1

    def terminate(self) -> None:
        signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    def log(self) -> str:
        return Path(self.environment["LOG"]).read_text()


@pytest.fixture
def forked(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., ForkedServer]]:
    made: list[ForkedServer] = []

    def make(**environment: str) -> ForkedServer:
        made.append(ForkedServer(zygote, tmp_path / f"home{len(made)}", **environment))
        return made[-1]

    yield make
    for server in made:
        server.kill()
        server.store.close()


def ask(client: httpx.Client, text: str = "Hello!", **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def events(response: httpx.Response) -> Iterator[Any]:
    """The data of each event: chunks as objects, `[DONE]` as it is."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
