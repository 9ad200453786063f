"""The page in every dress: phone, dark, English, Chinese; nothing overflows."""

import pytest
from playwright.sync_api import Page, expect

from .conftest import NewPage
from .steps import answered, say

pytestmark = [pytest.mark.browser, pytest.mark.engine]

PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def ground(page: Page) -> int:
    """How light the page's ground is, 0 to 255."""
    return page.evaluate(
        "Math.round(getComputedStyle(document.body).backgroundColor.match(/\\\\d+/g).slice(0, 3)"
        ".reduce((sum, value) => sum + Number(value), 0) / 3)".replace("\\\\", "\\")
    )


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_phone(new_page: NewPage, shot, locale: str) -> None:
    page = new_page(**PHONE, locale=locale)
    expect(page.locator("#policy-name")).not_to_have_text("…")
    for always in ("#policy-name", "#votes-total", "#trainer-text"):
        expect(page.locator(always)).to_be_in_viewport()
    expect(page.locator("#welcome h1")).to_be_in_viewport(ratio=1)
    composer = page.locator("#composer").bounding_box()
    assert composer
    assert composer["height"] < 130, "an empty composer takes the room of the conversation"
    shot(page, f"phone-empty-{locale}")
    say(page, "How are you today?" if locale == "en-US" else "你今天好吗？")
    answer = answered(page)
    answer.locator('[data-thumb="up"]').tap()
    expect(answer.locator(".details")).to_be_visible()
    assert overflow(page) == 0
    shot(page, f"phone-voted-{locale}")
    answer.locator(".details").press("Escape")
    page.locator("#compare-toggle").tap()
    say(page, "What can you do?" if locale == "en-US" else "你会做什么？")
    expect(page.locator(".choice").first).to_be_visible()
    page.locator('[data-choice="left"]').tap()
    expect(page.locator(".pane .policy-tag")).to_have_count(2)
    assert overflow(page) == 0
    shot(page, f"phone-compared-{locale}")
    panes = [page.locator(f'.pane[data-side="{side}"]').bounding_box() for side in ("left", "right")]
    assert panes[0]
    assert panes[1]
    assert panes[1]["y"] >= panes[0]["y"] + panes[0]["height"], "on a phone the panes stand below each other"

    page.locator("#sidebar-open").tap()
    expect(page.locator("#sidebar-close")).to_be_focused()
    expect(page.locator("#history .history-item")).to_have_count(1)
    shot(page, f"phone-sidebar-{locale}")
    assert page.evaluate("document.getElementById('stage').inert")
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).not_to_be_in_viewport()
    assert not page.evaluate("document.getElementById('stage').inert")


def test_dark_follows_the_system_and_the_switch_wins(new_page: NewPage, shot) -> None:
    page = new_page(color_scheme="dark")
    assert ground(page) < 60
    say(page, "What is the capital of Japan?")
    answered(page).locator('[data-thumb="up"]').click()
    shot(page, "chat-desktop-dark")
    page.get_by_role("button", name="Light theme").click()
    assert ground(page) > 200
    page.reload()
    assert ground(page) > 200
    page.get_by_role("button", name="Theme of the system").click()
    assert ground(page) < 60
    page.emulate_media(color_scheme="light")
    assert ground(page) > 200


def test_language_follows_the_browser_and_the_switch_wins(new_page: NewPage, shot) -> None:
    page = new_page(locale="zh-CN")
    expect(page.locator("#welcome h1")).to_have_text("有什么可以帮你？")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    shot(page, "empty-desktop-zh")
    page.locator(".suggestion").first.click()
    answer = answered(page)
    expect(answer.locator('[data-thumb="up"]')).to_have_attribute("aria-label", "回答得好")
    answer.locator('[data-thumb="up"]').click()
    expect(answer.locator(".vote-note")).to_have_text("谢谢，已计入")
    page.get_by_role("button", name="English").click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, counted")
    expect(answer.locator(".details-title")).to_have_text("What was good?")
    expect(page.locator("#votes-mine")).to_have_text("1 by you")
    page.reload()
    expect(page.locator("#prompt")).to_have_attribute("placeholder", "Write a message")
    assert page.locator("html").get_attribute("lang") == "en"


def test_the_side_bar_closes_and_opens(page: Page) -> None:
    page.get_by_role("button", name="Close the side bar").click()
    expect(page.locator("#sidebar")).not_to_be_visible()
    expect(page.locator("#sidebar-open")).to_be_focused()
    page.get_by_role("button", name="Open the side bar").click()
    expect(page.locator("#sidebar")).to_be_visible()
