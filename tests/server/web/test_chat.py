"""Chat on the page: it streams, it stops, it answers again, and errors say what to do."""

import json

import pytest
from playwright.sync_api import Page, Route, expect

from .conftest import RunningServer, asks_for_long_answers
from .steps import answered, conversation_id, ended_reply, eventually, reads_as, reply_id, say, stored_reply

pytestmark = [pytest.mark.browser, pytest.mark.engine]

WATCH_LENGTHS = """
() => {
  const lengths = [];
  const observer = new MutationObserver(() => {
    const text = document.querySelector(".answer-text:not(.markdown)")?.textContent ?? ""; // while it is plain text
    if (text.length !== lengths.at(-1)) lengths.push(text.length);
  });
  observer.observe(document.body, { childList: true, subtree: true, characterData: true });
  window.stopWatching = () => (observer.disconnect(), lengths);
}
"""


STOP_SOON = """
() => {
  const observer = new MutationObserver(() => {
    if ((document.querySelector(".answer-text")?.textContent.length ?? 0) <= 40) return;
    observer.disconnect();
    document.getElementById("stop").click();
  });
  observer.observe(document.body, { childList: true, subtree: true, characterData: true });
}
"""


def test_chat_streams(page: Page, server: RunningServer, shot) -> None:
    asks_for_long_answers(page, 1200)
    for _ in range(30):
        page.evaluate(WATCH_LENGTHS)
        say(page, "How are you today?")
        answer = answered(page)
        reply = stored_reply(server.store, reply_id(answer))
        assert reply.state == "complete"
        assert reply.messages[-1] == {"role": "user", "content": "How are you today?"}
        assert answer.locator(".answer-text").text_content() == reads_as(reply.text) != ""
        lengths = page.evaluate("window.stopWatching()")
        growing = [length for length in lengths[:-1] if length]  # the last one is of the rendered text
        assert growing == sorted(growing)
        if len(growing) >= 3:
            break
        page.click("#new-conversation")  # it ended by itself at once, or a busy machine drew it in one or two frames
        expect(page.locator("#welcome")).to_be_visible()
    assert len(growing) >= 3, f"the text came at once: {lengths}"
    shot(page, "chat-desktop-light")


def test_the_next_turn_sends_what_was_said_before(page: Page, server: RunningServer) -> None:
    say(page, "My name is Anna")
    first = stored_reply(server.store, reply_id(answered(page))).text
    say(page, "What is my name?")
    reply = stored_reply(server.store, reply_id(answered(page, 2)))
    assert [message["content"] for message in reply.messages if message["role"] != "system"] == [
        "My name is Anna",
        first,
        "What is my name?",
    ]


def test_stop_keeps_the_text_that_was_shown(page: Page, server: RunningServer, shot) -> None:
    asks_for_long_answers(page, 1200)
    for _ in range(30):
        page.evaluate(STOP_SOON)  # from within: a click from outside comes when the small model has said it all
        say(page, "Tell me everything")
        answer = answered(page)
        reply = ended_reply(server.store, reply_id(answer))
        if reply.state == "stopped":
            break
        page.click("#new-conversation")  # it ended by itself before it rambled, or before the server heard of the stop
    assert reply.state == "stopped"
    expect(answer.locator(".state")).to_have_text("Stopped")
    expect(page.locator("#send")).to_be_visible()
    shown = answer.locator(".answer-text").text_content() or ""
    assert len(shown) > 40
    assert shown == reads_as(reply.text)
    shot(page, "chat-stopped")

    page.reload()
    again = answered(page)
    expect(again.locator(".state")).to_have_text("Stopped")
    assert again.locator(".answer-text").text_content() == shown

    again.locator('[data-thumb="down"]').click()
    expect(again.locator(".vote-note")).to_have_text("Thank you, counted")


def test_answer_again_keeps_both_answers(page: Page, server: RunningServer) -> None:
    say(page, "What can you do?")
    first = reply_id(answered(page))
    page.locator(".regenerate").click()
    expect(page.locator(".versions-count")).to_have_text("2 / 2")
    second = reply_id(answered(page))
    assert second != first
    assert stored_reply(server.store, second).regenerate_of == first
    page.get_by_role("button", name="Previous answer").click()
    expect(page.locator(".versions-count")).to_have_text("1 / 2")
    assert reply_id(answered(page)) == first

    page.reload()
    expect(page.locator(".versions-count")).to_have_text("2 / 2")
    assert reply_id(answered(page)) == second
    expect(page.locator(".turn")).to_have_count(1)


def test_an_error_says_what_to_do_and_can_be_tried_again(page: Page, shot) -> None:
    def too_hot(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        route.continue_(post_data=json.dumps(body | {"temperature": 99}))

    page.route("**/v1/chat/completions", too_hot)
    with page.expect_response("**/v1/chat/completions") as refused:
        say(page, "Hello")
    assert refused.value.status >= 400
    message = refused.value.json()["error"]["message"]
    problem = page.locator(".problem")
    expect(problem).to_contain_text(message)
    shot(page, "chat-error")
    page.unroute("**/v1/chat/completions")
    problem.get_by_role("button", name="Try again").click()
    assert answered(page).locator(".answer-text").text_content()
    expect(page.locator(".problem")).to_have_count(0)


def test_a_server_that_is_away_is_told_of(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "Hello")
    expect(page.locator(".problem")).to_contain_text("could not be reached")


def test_keyboard_alone(page: Page, server: RunningServer) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("How are you?")
    page.keyboard.press("Enter")
    answer = answered(page)
    assert stored_reply(server.store, reply_id(answer)).messages[-1]["content"] == "Hello\nHow are you?"
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.dataset.thumb") == "down":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus cannot be seen"
    page.keyboard.press("Enter")
    expect(answer.locator(".details")).to_be_visible()
    expect(answer.locator(".details button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(answer.locator(".details")).to_have_count(0)
    expect(answer.locator('[data-thumb="down"]')).to_be_focused()
    expect(answer.locator('[data-thumb="down"]')).to_have_attribute("aria-pressed", "true")


def test_a_screen_reader_hears_the_whole_answer_once(page: Page) -> None:
    page.evaluate(
        """() => {
          window.spoken = [];
          const box = document.getElementById("announcer");
          new MutationObserver(() => box.textContent && window.spoken.push(box.textContent))
            .observe(box, { childList: true, characterData: true, subtree: true });
        }"""
    )
    say(page, "What is the capital of Japan?")
    text = answered(page).locator(".answer-text").text_content()
    spoken = eventually(lambda: page.evaluate("window.spoken"), lambda spoken: len(spoken) >= 2)
    assert spoken == ["kudos is writing", f"Answer: {text}"]
    assert page.locator("#thread").get_attribute("aria-live") is None


def test_a_conversation_goes_on_while_another_is_open(page: Page, server: RunningServer) -> None:
    asks_for_long_answers(page, 400)
    say(page, "Hello")
    first = conversation_id(page)
    page.click("#new-conversation")
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#send")).to_be_visible()
    page.locator(f'[data-conversation="{first}"] .history-open').click()
    answer = answered(page)
    assert stored_reply(server.store, reply_id(answer)).state == "complete"
    expect(answer.get_by_text("Stopped")).to_have_count(0)
