"""axe-core finds nothing to object to: each view, light and dark, in both languages, at a desk and on a phone."""

import pytest
from playwright.sync_api import Page, expect

from .steps import DRESSES, answered, barriers, say, wear

pytestmark = [pytest.mark.browser, pytest.mark.engine]


def everywhere(page: Page) -> dict[str, list[str]]:
    found = {}
    for dress in DRESSES:
        wear(page, *dress)
        found[str(dress)] = barriers(page)
    wear(page, *DRESSES[0])
    return {dress: each for dress, each in found.items() if each}


def test_the_page_has_no_barriers(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")  # a colour on its way to another one has the contrast of neither
    expect(page.locator("#policy-name")).not_to_have_text("…")
    assert everywhere(page) == {}

    say(page, "What can you do?")
    answer = answered(page)
    answer.locator('[data-thumb="down"]').click()
    assert page.evaluate("document.getAnimations().length") == 0, (
        "something moves, though the system asks for stillness"
    )
    answer.get_by_role("button", name="Write a better answer").click()
    page.get_by_role("button", name="Edit and send again").click()
    page.click("#compare-toggle")
    say(page, "Hello")
    page.locator('[data-choice="left"]').click()
    expect(page.locator(".pane .policy-tag")).to_have_count(2)
    assert everywhere(page) == {}

    page.click("#my-data-open")
    expect(page.locator("#consent-default")).to_be_enabled()
    assert everywhere(page) == {}
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 360, "height": 740})
    page.click("#sidebar-open")
    assert barriers(page) == []
