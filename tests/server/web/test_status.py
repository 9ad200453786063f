"""What is always in view: the policy that answers, the votes counted, what the trainer does."""

import json

import pytest
from playwright.sync_api import Page, Route, expect

from .conftest import RunningServer
from .steps import eventually

pytestmark = [pytest.mark.browser, pytest.mark.engine]


# By the page's own clock: a busy machine may be late in looking.
HIDE = """
(hidden) => {
  const now = performance.now();
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
  return now;
}
"""
ASKED = """
() => performance.getEntriesByType("resource").filter((e) => e.name.endsWith("/v1/status")).map((e) => e.startTime)
"""
NOTICES_STAY = """
() => {
  const real = window.setTimeout;
  window.setTimeout = (run, after, ...more) => real(run, after === 12000 ? 2 ** 31 - 1 : after, ...more);
}
"""


def test_the_policy_in_view_is_the_one_that_serves(page: Page, server: RunningServer) -> None:
    served = page.request.get(f"{server.url}/v1/status").json()
    expect(page.locator("#policy-name")).to_have_attribute("title", served["policy"]["version"])
    expect(page.locator("#policy-name")).to_have_text(f"v{served['policy']['number']}")
    expect(page.locator("#votes-total")).to_contain_text("counted")


def test_a_newer_policy_is_announced_gently(page: Page, shot) -> None:
    """The swap itself is tested where swaps are; here the server's answer is moved on by one policy."""
    expect(page.locator("#policy-name")).not_to_have_text("…")

    def moved_on(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        number = body["policy"]["number"] + 1
        body["policy"] = {**body["policy"], "version": f"v{number}-0123abcd", "number": number}
        body["trainer"] = {"state": "running", "stage": "ppo", "progress": 0.4, "message": "step 12 of 30"}
        route.fulfill(response=answer, body=json.dumps(body))

    page.evaluate(NOTICES_STAY)
    page.route("**/v1/status", moved_on)
    notice = page.locator(".notice-policy")
    expect(notice).to_contain_text("A newer policy answers now: v")
    expect(page.locator("#trainer-text")).to_have_text("Learning: practising")
    assert page.evaluate("document.getElementById('trainer-progress').value") == pytest.approx(0.4)
    shot(page, "newer-policy")
    page.unroute("**/v1/status")
    expect(page.locator(".notice-policy").nth(1)).to_contain_text("An earlier policy answers again: v")
    notice.first.get_by_role("button", name="Dismiss").click()
    expect(notice).to_have_count(1)


def test_a_hidden_page_does_not_ask(page: Page) -> None:
    expect(page.locator("#policy-name")).not_to_have_text("…")
    hidden_at = page.evaluate(HIDE, True)
    page.wait_for_timeout(5_000)
    shown_at = page.evaluate(HIDE, False)
    asked = eventually(lambda: page.evaluate(ASKED), lambda times: sum(at >= shown_at for at in times) >= 2)
    assert not [at for at in asked if hidden_at < at < shown_at]
    first, second = [at for at in asked if at >= shown_at][:2]
    assert first - shown_at < 3_900, "it asks at once, not at the next turn"
    assert second - first > 3_900, "and then as often as before"


def test_a_lost_server_is_shown_and_found_again(page: Page, server: RunningServer) -> None:
    expect(page.locator("#policy-name")).not_to_have_text("…")
    page.route("**/v1/status", lambda route: route.abort())
    expect(page.locator("#policy-name")).to_have_text("Reconnecting…")
    page.unroute("**/v1/status")
    expect(page.locator("#policy-name")).not_to_have_text("Reconnecting…")
