"""A message edited and sent again: every wording stays, each with what was said after it."""

import pytest
from playwright.sync_api import Page, expect

from .conftest import RunningServer
from .steps import answered, conversation_id, reply_id, say, stored_comparison, stored_reply

pytestmark = [pytest.mark.browser, pytest.mark.engine]


def questions(page: Page) -> list[str]:
    return [user.text_content() or "" for user in page.locator(".user").all()]


def edit(page: Page, turn: int, text: str) -> None:
    page.locator(".turn").nth(turn - 1).hover()
    page.locator(".turn").nth(turn - 1).get_by_role("button", name="Edit and send again").click()
    expect(page.get_by_label("Your message", exact=True)).to_be_focused()
    page.get_by_label("Your message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_edit_and_send_again(page: Page, server: RunningServer, shot) -> None:
    say(page, "My name is Anna")
    anna = reply_id(answered(page))
    say(page, "What is my name?")
    name = reply_id(answered(page, 2))

    edit(page, 1, "My name is Tom")
    expect(page.locator(".turn")).to_have_count(1)
    tom = stored_reply(server.store, reply_id(answered(page)))
    assert tom.id not in (anna, name)
    assert (tom.parent_id, tom.regenerate_of) == (None, None)
    assert [message["content"] for message in tom.messages if message["role"] == "user"] == ["My name is Tom"]
    assert tom.conversation_id == conversation_id(page)
    wordings = page.locator(".asked .versions-count")
    expect(wordings).to_have_text("2 / 2")
    shot(page, "edited")

    page.get_by_role("button", name="Previous wording").click()
    assert questions(page) == ["My name is Anna", "What is my name?"]
    expect(page.get_by_role("button", name="Next wording")).to_be_focused()
    assert [reply_id(answered(page, turn)) for turn in (1, 2)] == [anna, name]
    say(page, "Thank you")
    thanks = stored_reply(server.store, reply_id(answered(page, 3)))
    assert thanks.parent_id == name
    assert [message["content"] for message in thanks.messages if message["role"] == "user"] == [
        "My name is Anna",
        "What is my name?",
        "Thank you",
    ]

    edit(page, 2, "What is it?")
    expect(page.locator(".turn")).to_have_count(2)
    assert stored_reply(server.store, reply_id(answered(page, 2))).parent_id == anna

    page.reload()
    answered(page, 2)
    assert questions(page) == ["My name is Anna", "What is it?"]
    expect(wordings).to_have_text(["1 / 2", "2 / 2"])
    page.get_by_role("button", name="Previous wording").last.click()
    assert questions(page) == ["My name is Anna", "What is my name?", "Thank you"]


def test_an_edit_that_is_given_up_sends_nothing(page: Page) -> None:
    say(page, "Hello")
    answered(page)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    pencil = page.get_by_role("button", name="Edit and send again")
    pencil.click()
    page.keyboard.type(" there")
    page.keyboard.press("Escape")
    expect(pencil).to_be_focused()
    expect(page.locator(".user")).to_have_text("Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your message", exact=True)).to_have_value("Hello")
    page.keyboard.press("Enter")  # as it was
    expect(pencil).to_be_focused()
    assert sent == []


def test_two_answers_that_the_server_offers(page: Page, server: RunningServer, shot) -> None:
    """Whether it offers them is tested over HTTP; here each request becomes one for a comparison."""
    page.route("**/v1/chat/completions", lambda route: route.continue_(url=f"{server.url}/v1/comparisons"))
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "What can you do?")
    assert asked.value.post_data_json["may_compare"] is True
    expect(page.locator(".offer")).to_contain_text("Two answers this time")
    page.click('[data-choice="right"]')
    expect(page.locator(".pane .policy-tag")).to_have_count(2)
    shot(page, "offered")
    identifier = page.locator(".comparison").get_attribute("data-comparison") or ""
    page.unroute("**/v1/chat/completions")
    say(page, "Thank you")
    thanks = stored_reply(server.store, reply_id(answered(page, 2)))
    assert thanks.parent_id == stored_comparison(server.store, identifier).right_reply_id
