"""Replies as Markdown in real Chromium: they look right, keep their place, and hostile ones do nothing."""

import pytest
from playwright.sync_api import Page, expect

from feedback.schema import Reply
from server.markdown import TAGS, to_html
from tests.server.hostile import CORPUS

from .conftest import NewPage, RunningServer
from .steps import answered, plant_replies, reads_as, reply_id, say, stored_reply

pytestmark = [pytest.mark.browser, pytest.mark.engine]

EVERYTHING = """## What I found

Mugs come in **three** sizes, *all* of them [in stock](https://shop.example/mugs "why not"), and ~~two~~ none are blue.
A second line of the same paragraph.

| Size | Price | Left |
|:-----|------:|:----:|
| small | 4.50 | yes |
| large | 12.00 | no |

1. Choose one.
2. Say `size = "small"`.
   - or another
   - or both

> Nothing is as good as a mug.

```python
def price(size: str, many: int = 1) -> float:
    \"\"\"What it costs, in euros.\"\"\"
    return {"small": 4.5, "large": 12.0}[size] * many  # and a comment that is much too long for any phone
```

![A picture of a mug](https://shop.example/mug.png)

---
We also have:
- hats.
- scarves.
Anything else?"""

SEEN = """
() => {
  const elements = [...document.querySelectorAll(".answer-text.markdown *")].filter((each) => !each.closest("button"));
  return {
    tags: [...new Set(elements.map((each) => each.localName))],
    foreign: elements.filter((each) => each.namespaceURI !== "http://www.w3.org/1999/xhtml").length,
    attributes: [
      ...new Set(elements.flatMap((each) => each.getAttributeNames().map((name) => `${each.localName} ${name}`))),
    ],
    links: [...new Set(elements.filter((each) => each.localName === "a").map((each) => each.protocol))],
  };
}
"""


def someone(server: RunningServer, page: Page) -> Reply:
    """A reply of the person on this page, from which others can be planted for them."""
    say(page, "Hello")
    return stored_reply(server.store, reply_id(answered(page)))


def open_planted(page: Page, server: RunningServer, texts: list[str]) -> None:
    conversation = plant_replies(server.store, someone(server, page), texts)
    page.goto(f"{server.url}/#{conversation}")
    page.reload()
    expect(page.locator(".answer-text")).to_have_count(len(texts))


def test_the_whole_corpus_does_nothing(page: Page, server: RunningServer) -> None:
    """`page` also fails on any request to another server, and on anything that only its security policy stopped."""
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    furniture = page.locator("body > *").count()
    open_planted(page, server, list(CORPUS.values()))
    expect(page.locator("#thread > .turn > article.answer > .answer-text.markdown")).to_have_count(len(CORPUS))
    page.mouse.move(640, 400)
    page.mouse.wheel(0, 4_000)
    page.wait_for_timeout(1_000)
    assert page.evaluate("window.pwned") is None
    assert dialogs == []
    seen = page.evaluate(SEEN)
    assert set(seen["tags"]) <= TAGS
    assert seen["foreign"] == 0
    assert set(seen["links"]) <= {"http:", "https:", "mailto:"}
    allowed = {f"a {name}" for name in ("href", "rel", "target")} | {"ol start", "td align", "th align"}
    allowed |= {"div class", "span class", *(f"{tag} dir" for tag in TAGS)}
    assert set(seen["attributes"]) <= allowed
    assert page.locator("body > *").count() == furniture, "something got out of its place"


def test_a_reply_becomes_markdown_at_its_end(page: Page, server: RunningServer) -> None:
    """The reply of the model is replaced on its way by one that is longer than what a small model says."""
    page.route(
        "**/v1/replies/*",
        lambda route: route.fulfill(json=route.fetch().json() | {"text": EVERYTHING, "html": to_html(EVERYTHING)}),
    )
    say(page, "Hello")
    answer = answered(page)
    expect(answer.locator("h2")).to_have_text("What I found")
    expect(answer.locator("li")).to_have_text(
        ["Choose one.", 'Say size = "small". or another or both', "or another", "or both", "hats.", "scarves."]
    )
    expect(answer.locator(".answer-text > p").last).to_have_text("Anything else?")
    assert answer.locator("img").count() == 0
    link = answer.get_by_role("link", name="in stock")
    assert link.get_attribute("target") == "_blank"
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"


def test_what_cannot_be_rendered_stays_as_it_was_said(page: Page, server: RunningServer) -> None:
    page.route("**/v1/replies/*", lambda route: route.abort())
    say(page, "Hello")
    answer = page.locator(".answer")
    expect(answer.locator('[data-thumb="up"]')).to_be_visible()
    assert answer.locator(".answer-text").text_content() == stored_reply(server.store, reply_id(answer)).text
    assert answer.locator(".markdown").count() == 0


@pytest.mark.parametrize("dress", ["light", "dark", "phone"])
def test_how_it_looks(new_page: NewPage, server: RunningServer, shot, dress: str) -> None:
    options = {
        "light": {"viewport": {"width": 1280, "height": 1400}},
        "dark": {"viewport": {"width": 1280, "height": 1400}, "color_scheme": "dark"},
        "phone": {
            "viewport": {"width": 360, "height": 1500},
            "device_scale_factor": 2,
            "has_touch": True,
            "is_mobile": True,
        },
    }
    page = new_page(**options[dress])
    open_planted(page, server, [EVERYTHING])
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    box = page.locator(".answer-text").bounding_box()
    code = page.locator(".markdown pre").bounding_box()
    assert box
    assert code
    assert code["width"] <= box["width"]
    plain, keyword = (
        page.locator(f".markdown pre {part}").first.evaluate("(node) => getComputedStyle(node).color")
        for part in ("code", ".hl-k")
    )
    assert plain != keyword
    shot(page, f"markdown-{dress}")


def test_copies_are_of_the_text_and_of_the_code(new_page: NewPage, server: RunningServer) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    open_planted(page, server, [EVERYTHING])
    page.locator(".answer-foot").get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator(".answer-foot").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == EVERYTHING
    copy_code = page.get_by_role("button", name="Copy the code")
    copy_code.focus()
    assert float(copy_code.evaluate("(node) => getComputedStyle(node).opacity")) == 1
    page.keyboard.press("Enter")
    expect(page.locator(".code").get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def price(size: str, many: int = 1) -> float:\n")
    assert copied == page.locator(".markdown pre").text_content()


WHERE = """
(node) => {
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (walker.currentNode.data.trim()) texts.push(walker.currentNode);
  const last = texts.at(-1);
  const left = (at) => {
    const range = document.createRange();
    range.setStart(last, at);
    range.setEnd(last, at + 1);
    return range.getBoundingClientRect().left;
  };
  return left(0) < left(last.data.length - 1);
}
"""


@pytest.mark.parametrize(
    "text",
    ["\u202eevil\n\nplain words", "`\u202ecode` plain words", "> \u2067\u202equote\n\nplain words",
     "[\u202eknil](https://a.example) plain words", "- \u202eitem\n- plain words",
     "| a |\n|-|\n| \u202eb |\n\nplain words"],
)  # fmt: skip
def test_overrides_of_direction_end_where_they_began(page: Page, server: RunningServer, text: str) -> None:
    open_planted(page, server, [text])
    answer = page.locator(".answer")
    assert answer.locator(".answer-text").evaluate(WHERE), "the words that follow are reordered"
    up, down = (answer.locator(f'[data-thumb="{thumb}"]').bounding_box() for thumb in ("up", "down"))
    assert up
    assert down
    assert up["x"] < down["x"]


def test_right_to_left_replies_read_from_the_right(page: Page, server: RunningServer, shot) -> None:
    open_planted(page, server, ["مرحبا بالعالم\n\n- واحد\n- اثنان\n\nEnglish again\n\n```python\nx = 1\n```"])
    directions = page.locator(".markdown > :is(p, ul), .markdown li, .markdown pre").evaluate_all(
        "(nodes) => nodes.map((node) => getComputedStyle(node).direction)"
    )
    assert directions == ["rtl", "rtl", "rtl", "rtl", "ltr", "ltr"]
    shot(page, "markdown-right-to-left")


def test_the_words_on_the_page_are_those_of_the_reply(page: Page, server: RunningServer) -> None:
    texts = ["one\ntwo", "We have:\n- mugs.\n- hats.\nAnything else?", "12.", "a < b & c"]
    open_planted(page, server, texts)
    assert [each.text_content() for each in page.locator(".answer-text").all()] == [reads_as(text) for text in texts]
    expect(page.locator(".answer-text").nth(2)).to_have_text("12.")
