"""What people do on the page and what the log says of it, shared by the tests of this folder."""

import time
from collections.abc import Callable
from typing import TypeVar

from playwright.sync_api import Locator, Page, expect
from sqlmodel import select

from feedback.schema import Comparison, Reply, Vote
from feedback.store import Store
from feedback.verdicts import effective_votes

T = TypeVar("T")


def say(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Page, number: int = 1) -> Locator:
    """The answer of the `number`th turn, once it can be voted on."""
    answer = page.locator(".turn").nth(number - 1).locator(".answer")
    expect(answer.locator('[data-thumb="up"]')).to_be_visible()
    return answer


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
