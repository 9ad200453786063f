"""What the page says of a reply that the safety filter cut, and of a question that it did not let through."""

import pytest
from playwright.sync_api import Page, Route, expect

from feedback.schema import Reply
from feedback.statements import columns, table
from tests.server.web.conftest import RunningServer
from tests.server.web.steps import answered, reply_id, say

pytestmark = [pytest.mark.browser, pytest.mark.engine]

SAYS = {
    "en": ("Cut short by the safety filter", "does not let this message through"),
    "zh": ("后面的内容被安全过滤器截断", "安全过滤器未放行这条消息"),
}


def cut(route: Route) -> None:
    """The server's own answer, ended otherwise. What the filter does is in tests/server/test_safety.py."""
    answer = route.fetch()
    route.fulfill(
        response=answer, body=answer.text().replace('"finish_reason":"stop"', '"finish_reason":"content_filter"')
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_reply_that_was_cut_says_so(new_page, server: RunningServer, shot, language: str) -> None:  # type: ignore[no-untyped-def]
    page: Page = new_page(locale="en-US" if language == "en" else "zh-CN")
    page.route("**/v1/chat/completions", cut)
    say(page, "Hello")
    answer = answered(page)
    expect(answer.locator(".state")).to_have_text(SAYS[language][0])
    shot(page, f"filtered-{language}")
    # As the log has it when the conversation is opened again.
    with server.store.write() as session:
        mine = columns(Reply).id == reply_id(answer)
        session.execute(table(Reply).update().where(mine).values(state="stopped", finish_reason="content_filter"))
    page.unroute("**/v1/chat/completions")
    page.reload()
    page.locator(".history-open").first.click()
    expect(page.locator(".answer .state")).to_have_text(SAYS[language][0])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_question_that_is_not_let_through(new_page, language: str) -> None:  # type: ignore[no-untyped-def]
    page: Page = new_page(locale="en-US" if language == "en" else "zh-CN")
    error = {"message": "the safety filter does not let this through", "code": "content_filter", "param": "messages"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": error}))
    say(page, "Hello")
    expect(page.locator(".problem")).to_contain_text(SAYS[language][1])
    expect(page.locator(".problem .retry")).to_have_count(0)  # the same again is refused again
