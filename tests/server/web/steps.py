"""What people do on the page and what the log says of it, shared by the tests of this folder."""

import time
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from typing import TypeVar

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Locator, Page, expect
from sqlmodel import select

from feedback.ids import new_id
from feedback.ledger import begin_reply, finish_reply
from feedback.schema import Comparison, Reply, ReplyState, Vote, now
from feedback.store import Store
from feedback.verdicts import effective_votes
from server.markdown import to_html

T = TypeVar("T")


def say(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Page, number: int = 1) -> Locator:
    """The answer of the `number`th turn, once it can be voted on and its words are there as the server renders them."""
    answer = page.locator(".turn").nth(number - 1).locator(".answer")
    expect(answer.locator('[data-thumb="up"]')).to_be_visible()
    expect(answer.locator(".answer-text.markdown")).to_have_count(1)
    return answer


def reads_as(text: str) -> str:
    """The words of a reply as the page shows them: the content of the elements that its Markdown becomes."""
    words: list[str] = []
    parser = HTMLParser()
    parser.handle_data = words.append  # type: ignore[method-assign]
    parser.feed(to_html(text) or text)
    parser.close()
    return "".join(words)


def plant_replies(store: Store, like: Reply, texts: list[str]) -> str:
    """A conversation with these replies, of the person that `like` was for. Returns its id."""
    conversation, parent = new_id("conv"), None
    at = now()
    with store.write() as session:
        for number, text in enumerate(texts):
            reply = Reply(
                id=new_id("chatcmpl"),
                conversation_id=conversation,
                user_id=like.user_id,
                parent_id=parent,
                created_at=at + timedelta(milliseconds=number),
                messages=[{"role": "user", "content": f"Number {number}"}],
                prompt_digest=like.prompt_digest,
                policy_version=like.policy_version,
            )
            begin_reply(session, reply)
            session.flush()
            finish_reply(session, reply.id, state=ReplyState.COMPLETE, text=text, finish_reason="stop")
            parent = reply.id
    return conversation


DRESSES = (("light", "en", True), ("dark", "zh", True), ("light", "zh", False), ("dark", "en", False))
"""Theme, language, and whether the screen is a desk's or a phone's."""


def wear(page: Page, theme: str, language: str, desk: bool) -> None:
    page.set_viewport_size({"width": 1280, "height": 820} if desk else {"width": 360, "height": 740})
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    page.evaluate(
        """async (language) => {
          const { setLanguage } = await import("/i18n.js");
          setLanguage(language);
        }""",
        language,
    )


def barriers(page: Page) -> list[str]:
    """What axe-core finds on the page as it stands: rule, how grave, and where."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")["violations"]
    return [f"{each['id']} ({each['impact']}): {node['target']}" for each in found for node in each["nodes"]]


def reply_id(answer: Locator) -> str:
    value = answer.get_attribute("data-reply")
    assert value
    return value


def conversation_id(page: Page) -> str:
    """The conversation that is open, once the page's address names it."""
    fragment = eventually(lambda: str(page.evaluate("location.hash")), lambda fragment: len(fragment) > 1)
    assert len(fragment) > 1
    return fragment[1:]


def stored_reply(store: Store, identifier: str) -> Reply:
    with store.read() as session:
        return session.exec(select(Reply).where(Reply.id == identifier)).one()


def ended_reply(store: Store, identifier: str) -> Reply:
    """The reply once it is no longer being written: a stop reaches the server a moment after it shows on the page."""
    return eventually(lambda: stored_reply(store, identifier), lambda reply: reply.state != "streaming")


def stored_comparison(store: Store, identifier: str) -> Comparison:
    with store.read() as session:
        return session.exec(select(Comparison).where(Comparison.id == identifier)).one()


def effective_vote(store: Store, target_id: str) -> Vote | None:
    with store.read() as session:
        found = [vote for vote in effective_votes(session) if vote.target_id == target_id]
    assert len(found) <= 1
    return found[0] if found else None


def revisions(store: Store, target_id: str) -> list[Vote]:
    with store.read() as session:
        return list(session.exec(select(Vote).where(Vote.target_id == target_id).order_by(Vote.revision)))  # type: ignore[arg-type]


def eventually(read: Callable[[], T], holds: Callable[[T], bool], seconds: float = 60.0) -> T:
    """Reads until it holds, and returns the last reading either way: the caller asserts on it."""
    deadline = time.monotonic() + seconds
    value = read()
    while not holds(value) and time.monotonic() < deadline:
        time.sleep(0.1)
        value = read()
    return value
