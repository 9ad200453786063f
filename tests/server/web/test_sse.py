"""The page's reading of server-sent events, in the browser that will run it: no cut of the bytes changes them."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

WEB = Path(__file__).parents[3] / "server" / "web"

pytestmark = pytest.mark.browser

READ_IN_PIECES = """
async ({ bytes, cuts }) => {
  const { events } = await import("/sse.js");
  const body = new ReadableStream({
    start(controller) {
      let from = 0;
      for (const to of [...cuts, bytes.length]) {
        if (to > from) controller.enqueue(new Uint8Array(bytes.slice(from, to)));
        from = to;
      }
      controller.close();
    },
  });
  const seen = [];
  for await (const data of events(body)) seen.push(data);
  return seen;
}
"""

EVENTS = ['{"text": "你好 😀"}', "two\nlines", "[DONE]"]
LINES = [
    ": keepalive",
    "",
    f"data: {EVENTS[0]}",
    "",
    "event: ignored",
    "data: two",
    "data:lines",
    "",
    "data: [DONE]",
    "",
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def files() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(WEB))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_every_cut_gives_the_same_events(browser: Browser, files: str, newline: str) -> None:
    page = browser.new_page()
    page.goto(f"{files}/mark.svg")
    data = list((newline.join(LINES) + newline).encode())
    for cut in range(len(data)):
        assert page.evaluate(READ_IN_PIECES, {"bytes": data, "cuts": [cut]}) == EVENTS, f"cut at byte {cut}"
    assert page.evaluate(READ_IN_PIECES, {"bytes": data, "cuts": list(range(1, len(data)))}) == EVENTS
    page.close()


def test_an_event_that_was_not_ended_is_not_an_event(browser: Browser, files: str) -> None:
    page = browser.new_page()
    page.goto(f"{files}/mark.svg")
    data = list(b'data: whole\n\ndata: {"half": ')
    assert page.evaluate(READ_IN_PIECES, {"bytes": data, "cuts": []}) == ["whole"]
    page.close()
