"""A real server with the built-in model, and a real Chromium in front of it, shared by this folder's tests.

While one works on the page, a server that runs already saves its start: KUDOS_TEST_URL and, its home, KUDOS_TEST_HOME.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from feedback.settings import Settings
from feedback.store import Store, open_store

ROOT = Path(__file__).parents[3]
START_SECONDS = 240
PATIENCE_MS = 60_000  # a busy machine is slow, not wrong
expect.set_options(timeout=PATIENCE_MS)
CHROMIUM = os.environ.get("KUDOS_TEST_CHROMIUM", "/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class RunningServer:
    url: str
    home: Path
    store: Store


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not get ready; the end of its log:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    if "KUDOS_TEST_URL" in os.environ:
        home = Path(os.environ["KUDOS_TEST_HOME"])
        store = open_store(Settings(home=home))
        yield RunningServer(os.environ["KUDOS_TEST_URL"], home, store)
        store.close()
        return
    home = tmp_path_factory.mktemp("kudos-home")
    port = free_port()
    log = home / "server.log"
    environment = os.environ | {
        "KUDOS_HOME": str(home),
        "KUDOS_PORT": str(port),
        "KUDOS_COMPARISON_RATE": "0",  # a test that wants two answers asks for them
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kudos", "serve"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        store = open_store(Settings(home=home))
        yield RunningServer(url, home, store)
        store.close()
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the server, and with it the engine's processes, which share its session."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


@pytest.fixture(scope="package")  # while it is open, its own event loop runs in this thread
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; set KUDOS_TEST_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS, timeout=240_000)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What went wrong on a page without anybody looking."""

    errors: list[str]
    strangers: list[str]


NewPage = Callable[..., Page]


@pytest.fixture
def new_page(browser: Browser, server: RunningServer) -> Iterator[NewPage]:
    """Opens pages as new people (a cookie each); afterwards, no script error and no request elsewhere is forgiven."""
    contexts: list[BrowserContext] = []
    watch = Watch([], [])
    origin = urlsplit(server.url).netloc

    def open_page(path: str = "/", **options: Any) -> Page:
        context = browser.new_context(**({"locale": "en-US", "viewport": {"width": 1280, "height": 820}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: watch.errors.append(str(error)))
        page.on(
            "console",
            lambda message: watch.errors.append(message.text) if "Content Security Policy" in message.text else None,
        )
        page.on(
            "request",
            lambda request: (
                watch.strangers.append(request.url)
                if urlsplit(request.url).netloc != origin and not request.url.startswith(("data:", "blob:"))
                else None
            ),
        )
        page.goto(server.url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert watch == Watch([], [])


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("KUDOS_TEST_ARTIFACTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def shot(artifacts: Path) -> Callable[[Page, str], None]:
    def take(page: Page, name: str) -> None:
        page.wait_for_timeout(350)  # let a transition end
        page.screenshot(path=artifacts / f"{name}.png", animations="disabled")

    return take


def asks_for_long_answers(page: Page, tokens: int) -> None:
    """The built-in model is curt. Sampled hot, and rewarded for repeating itself, it rambles to the limit."""

    def lengthen(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        body |= {"max_tokens": tokens, "temperature": 2.0, "frequency_penalty": -2.0}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", lengthen)
