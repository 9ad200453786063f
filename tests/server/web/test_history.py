"""Past conversations: listed, found, opened with their votes, renamed, deleted; and nobody else's."""

from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect
from sqlmodel import select

from feedback.ids import new_id
from feedback.schema import Conversation, now

from .conftest import NewPage, RunningServer
from .steps import answered, conversation_id, eventually, reply_id, say

pytestmark = [pytest.mark.browser, pytest.mark.engine]


def stored(server: RunningServer, identifier: str) -> Conversation:
    with server.store.read() as session:
        return session.exec(select(Conversation).where(Conversation.id == identifier)).one()


def test_reload_shows_the_conversation_with_its_votes(page: Page) -> None:
    say(page, "What is the capital of France?")
    answer = answered(page)
    text = answer.locator(".answer-text").text_content()
    answer.locator('[data-thumb="up"]').click()
    answer.locator('[data-reason="correct"]').click()
    answer.get_by_role("button", name="Save", exact=True).click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, saved")
    say(page, "And of Italy?")
    answered(page, 2)

    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    assert [user.text_content() for user in page.locator(".user").all()] == [
        "What is the capital of France?",
        "And of Italy?",
    ]
    answer = answered(page, 1)
    assert answer.locator(".answer-text").text_content() == text
    expect(answer.locator('[data-thumb="up"]')).to_have_attribute("aria-pressed", "true")
    answer.get_by_role("button", name="Details").click()
    expect(answer.locator('[data-reason="correct"]')).to_have_attribute("aria-pressed", "true")


def test_open_rename_delete(page: Page, server: RunningServer, shot) -> None:
    say(page, "Hello")
    first_text = answered(page).locator(".answer-text").text_content()
    first = conversation_id(page)
    page.click("#new-conversation")
    say(page, "How much is the mug?")
    answered(page)
    second = conversation_id(page)
    assert first != second
    expect(page.locator(".history-item")).to_have_count(2)

    page.locator(f'[data-conversation="{first}"] .history-open').click()
    expect(page.locator(".answer-text")).to_have_text(first_text or "")
    page.go_back()
    expect(page.locator(".user")).to_have_text("How much is the mug?")

    item = page.locator(f'[data-conversation="{first}"]')
    item.hover()
    item.get_by_role("button", name="Rename").click()
    page.locator(".history-rename").fill("关于<b>问候</b>")
    page.keyboard.press("Enter")
    expect(item.locator(".history-open")).to_have_text("关于<b>问候</b>")
    row = eventually(lambda: stored(server, first), lambda row: row.title == "关于<b>问候</b>")
    assert row.title == "关于<b>问候</b>"
    page.reload()
    expect(page.locator(".user")).to_have_text("How much is the mug?")  # drawn and focused: nothing moves after this
    expect(item.locator(".history-open")).to_have_text("关于<b>问候</b>")

    page.locator(f'[data-conversation="{first}"]').hover()
    page.locator(f'[data-conversation="{first}"]').get_by_role("button", name="Rename").click()
    page.locator(".history-rename").fill("never mind")
    page.keyboard.press("Escape")
    expect(item.locator(".history-open")).to_have_text("关于<b>问候</b>")

    page.get_by_label("Search conversations").fill("问候")
    expect(page.locator(".history-item")).to_have_count(1)
    expect(item).to_be_visible()
    page.get_by_label("Search conversations").fill("how much is THE mug")
    expect(item).to_have_count(0)
    expect(page.locator(f'[data-conversation="{second}"]')).to_be_visible()
    page.get_by_label("Search conversations").fill("nothing like it")
    expect(page.locator(".history-empty")).to_contain_text("Nothing found")
    shot(page, "found-nothing")
    page.keyboard.press("Escape")
    expect(page.locator(".history-item")).to_have_count(2)

    item.hover()
    item.get_by_role("button", name="Delete").click()
    expect(page.locator("#delete-dialog")).to_be_visible()
    shot(page, "delete-dialog")
    page.keyboard.press("Escape")
    expect(item).to_have_count(1)
    item.hover()
    item.get_by_role("button", name="Delete").click()
    page.locator("#delete-dialog").get_by_role("button", name="Delete").click()
    expect(item).to_have_count(0)
    assert stored(server, first).deleted_at is not None


def test_older_ones_are_listed_when_they_are_asked_for(page: Page, server: RunningServer) -> None:
    user, at = page.request.get(f"{server.url}/v1/me").json()["id"], now()
    with server.store.write() as session:
        for number in range(101):
            made = at - timedelta(hours=number)
            session.add(Conversation(id=new_id("conv"), user_id=user, title=f"Number {number}", updated_at=made))
    page.reload()
    expect(page.locator(".history-item")).to_have_count(100)
    page.get_by_role("button", name="Show older ones").click()
    expect(page.locator(".history-item")).to_have_count(101)
    expect(page.get_by_role("button", name="Number 100", exact=True)).to_be_focused()
    expect(page.get_by_role("button", name="Show older ones")).to_have_count(0)


def test_a_conversation_that_is_gone_is_told_of(new_page: NewPage) -> None:
    page = new_page("/#conv-that-never-was")
    expect(page.locator(".notice-error")).to_contain_text("does not exist any more")
    expect(page.locator("#welcome")).to_be_visible()


def test_people_see_their_own_conversations_alone(new_page: NewPage) -> None:
    mine, theirs = new_page(), new_page()
    say(mine, "My name is Anna")
    answered(mine)
    theirs.reload()
    expect(theirs.locator(".history-empty")).to_be_visible()
    theirs.goto(mine.url)
    expect(theirs.locator(".notice-error")).to_contain_text("does not exist any more")
    assert reply_id(answered(mine)) not in theirs.content()
