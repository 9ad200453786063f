"""A model's words are words: no reply, prompt or title executes anything or fetches anything, wherever it is shown."""

import re
from datetime import timedelta

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlmodel import select

from feedback.ids import new_id
from feedback.ledger import begin_comparison, begin_reply, finish_reply
from feedback.schema import Comparison, Conversation, Reply, ReplyState, now
from feedback.verdicts import effective_votes

from .conftest import NewPage, RunningServer
from .steps import answered, eventually, reads_as, reply_id, say, stored_reply

pytestmark = [pytest.mark.browser, pytest.mark.engine]

HOSTILE = """<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 1"><svg onload="window.pwned = 1"></svg>
<iframe srcdoc="<script>parent.pwned = 1</script>"></iframe>
<link rel=stylesheet href="//stranger.example/x.css"><img src="https://stranger.example/pixel.png">
<style>@import "https://stranger.example/x.css"; body { display: none }</style>
[click](javascript:window.pwned=1) ![](https://stranger.example/markdown.png)
</textarea></li></ol></main><h1>owned</h1><base href="https://stranger.example/">
<form action="https://stranger.example/"><input name=q></form> {{constructor.constructor('window.pwned=1')()}}
\u202eright to left\u202c \u0007 ${window.pwned = 1} " ' ` &lt;b&gt;"""


def person_of(server: RunningServer, page: Page) -> Reply:
    """A reply of the person on this page, from which a neighbouring one can be made."""
    say(page, "Hello")
    return stored_reply(server.store, reply_id(answered(page)))


def plant(server: RunningServer, like: Reply, text: str) -> tuple[str, str]:
    """A conversation of that person whose every text is hostile: a reply, a comparison, the prompts, the title."""
    conversation = new_id("conv")
    at = now()

    def reply(seconds: int, parent: str | None = None) -> Reply:
        return Reply(
            id=new_id("chatcmpl"),
            conversation_id=conversation,
            user_id=like.user_id,
            parent_id=parent,
            created_at=at + timedelta(seconds=seconds),
            messages=[{"role": "user", "content": text}],
            prompt_digest=like.prompt_digest,
            policy_version=like.policy_version,
        )

    single = reply(0)
    left, right = reply(1, single.id), reply(1, single.id)
    comparison = Comparison(
        id=new_id("cmp"),
        user_id=like.user_id,
        conversation_id=conversation,
        left_reply_id=left.id,
        right_reply_id=right.id,
    )
    with server.store.write() as session:
        begin_reply(session, single)
        begin_comparison(session, comparison, left, right)
        for one in (single, left, right):
            session.flush()
            finish_reply(session, one.id, state=ReplyState.COMPLETE, text=text, finish_reason="stop")
        row = session.exec(select(Conversation).where(Conversation.id == conversation)).one()
        row.title = text.replace("\n", " ")[:180]
    return conversation, single.id


def assert_untouched(page: Page) -> None:
    page.wait_for_timeout(500)
    assert page.evaluate("window.pwned") is None
    assert page.locator("body").is_visible()
    assert page.locator("#thread :is(script, img, iframe, form, style, base, h1)").count() == 0
    for link in page.locator("#thread a").all():
        assert re.match("https://|mailto:", link.get_attribute("href") or "")
    assert page.evaluate("document.baseURI.startsWith(location.origin)")
    expect(page.locator("h1", has_text="owned")).to_have_count(0)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_hostile_conversation_is_only_text(new_page: NewPage, server: RunningServer, shot, locale: str) -> None:
    page = new_page(locale=locale)
    conversation, planted = plant(server, person_of(server, page), HOSTILE)
    page.goto(f"{server.url}/#{conversation}")
    page.reload()
    texts = page.locator(".answer-text")
    expect(texts).to_have_count(3)
    seen = reads_as(stored_reply(server.store, planted).text)
    assert "<script>window.pwned = 1</script>" in seen
    assert [text.text_content() for text in texts.all()] == [seen] * 3
    assert page.locator(".user").first.text_content() == HOSTILE
    assert page.evaluate("getComputedStyle(document.querySelector('.user')).whiteSpace") == "pre-wrap"
    assert_untouched(page)
    shot(page, f"hostile-{locale}")

    # Everywhere else that its words can come: the vote's comment, the deletion's question, the title that is edited.
    answer = page.locator(".answer").first
    answer.locator('[data-thumb="down"]').click()
    answer.locator(".details textarea").first.fill(HOSTILE)
    answer.locator(".details .primary").click()
    expect(answer.locator(".vote-note")).not_to_be_empty()

    def comment() -> str:
        with server.store.read() as session:
            (vote,) = [vote for vote in effective_votes(session) if vote.target_id == planted]
        return vote.comment or ""

    assert eventually(comment, bool).startswith("<script>")
    item = page.locator(f'[data-conversation="{conversation}"]')
    item.hover()
    item.locator(".history-actions button").last.click()
    expect(page.locator("#delete-dialog")).to_contain_text("<script>")
    assert_untouched(page)
    page.keyboard.press("Escape")
    page.reload()
    page.locator(".answer").first.locator(".thumbs .link-button").click()
    assert_untouched(page)


def test_a_hostile_prompt_is_only_text(page: Page) -> None:
    page.fill("#prompt", HOSTILE)
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator(".user").text_content() == HOSTILE.strip()
    assert_untouched(page)


def test_a_hostile_address_opens_nothing(new_page: NewPage) -> None:
    page = new_page("/#%3Cimg%20src=x%20onerror=window.pwned=1%3E/../../health/live")
    expect(page.locator("#welcome")).to_be_visible()
    assert_untouched(page)


def test_the_policy_forbids_what_the_page_never_does(page: Page, server: RunningServer) -> None:
    """Were text ever to become markup, the content security policy would still stop it."""
    policy = page.goto(server.url).headers["content-security-policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";") if rule.strip()}
    assert rules["default-src"] in (["'self'"], ["'none'"])
    for rule, sources in rules.items():
        assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "http:", "data:"} & set(sources) or (
            rule == "img-src" and sources == ["'self'", "data:"]
        )
    assert rules["frame-ancestors"] == ["'none'"]
    assert rules["require-trusted-types-for"] == ["'script'"]
    assert rules["trusted-types"] == ["kudos"]


def test_no_script_of_the_page_can_make_markup_but_the_one(browser: Browser, server: RunningServer) -> None:
    context = browser.new_context()
    page = context.new_page()  # not watched: the browser says on its console what it refuses
    page.goto(server.url)
    expect(page.locator("#prompt")).to_be_focused()
    for sink in (
        "document.body.innerHTML = '<b>x</b>'",
        "new DOMParser().parseFromString('<b>x</b>', 'text/html')",
        "document.createElement('script').src = '/app.js'",
        "trustedTypes.createPolicy('kudos', { createHTML: (html) => html })",
        "trustedTypes.createPolicy('mine', { createHTML: (html) => html })",
    ):
        assert page.evaluate(f"() => {{ try {{ {sink} }} catch (error) {{ return error.name }} }}") == "TypeError", sink
    context.close()


def test_were_hostile_markup_to_come_from_the_server_nothing_would_run(browser: Browser, server: RunningServer) -> None:
    """The wall behind the walls: markup that nobody cleaned is put on the page by its own script."""
    context = browser.new_context()
    page = context.new_page()
    seen: list[str] = []
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("response", lambda response: seen.append(response.url) if "stranger" in response.url else None)
    page.goto(server.url)
    page.route("**/v1/replies/*", lambda route: route.fulfill(json=route.fetch().json() | {"html": HOSTILE}))
    say(page, "Hello")
    expect(page.locator(".answer-text.markdown svg")).to_have_count(1)
    page.wait_for_timeout(500)
    assert page.evaluate("window.pwned") is None
    assert seen == []
    assert page.url.startswith(server.url)
    context.close()
