"""My data: consent, what my votes taught, a copy of everything, and its erasure, by mouse, keyboard and phone."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect
from sqlmodel import select

from feedback.schema import Policy, TrainingSample, User, Vote

from .conftest import NewPage, RunningServer
from .steps import answered, eventually, reply_id, say, stored_reply

pytestmark = [pytest.mark.browser, pytest.mark.engine]

PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def vote_up(page: Page, server: RunningServer) -> str:
    """A person who has voted: their id."""
    say(page, "Hello")
    answer = answered(page)
    answer.locator('[data-thumb="up"]').click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, counted")
    return stored_reply(server.store, reply_id(answer)).user_id


def consent_of(server: RunningServer, user_id: str) -> bool | None:
    with server.store.read() as session:
        user = session.get(User, user_id)
        return None if user is None else user.consent


def open_panel(page: Page) -> None:
    page.click("#my-data-open")
    expect(page.locator("#consent-default")).to_be_enabled()


def test_consent_has_three_states_and_each_is_kept(page: Page, server: RunningServer, shot) -> None:
    user = vote_up(page, server)
    open_panel(page)
    expect(page.get_by_label("As this server has it: yes")).to_be_checked()
    shot(page, "my-data-light")
    for name, value in (("No", False), ("Yes", True), ("As this server has it: yes", None), ("No", False)):
        page.get_by_label(name, exact=True).check()
        expect(page.locator("#my-data-note")).to_have_text("Saved")
        kept = eventually(lambda: consent_of(server, user), lambda kept, value=value: kept is value)
        assert kept is value
    page.reload()
    open_panel(page)
    expect(page.get_by_label("No", exact=True)).to_be_checked()


def test_a_choice_that_is_refused_is_not_shown_as_made(page: Page, server: RunningServer) -> None:
    page.route("**/v1/me/consent", lambda route: route.continue_(post_data='{"consent": "maybe"}'))
    open_panel(page)
    page.get_by_label("No", exact=True).click()
    expect(page.locator("#my-data-note")).to_contain_text("consent")
    expect(page.get_by_label("As this server has it: yes")).to_be_checked()


def test_what_my_votes_taught(page: Page, server: RunningServer) -> None:
    user = vote_up(page, server)
    open_panel(page)
    expect(page.locator("#taught-none")).to_be_visible()
    page.keyboard.press("Escape")
    with server.store.write() as session:
        vote = session.exec(select(Vote).where(Vote.user_id == user)).one()
        for number, state in ((9001, "accepted"), (9002, "refused")):
            run, version = f"run-{number}", f"v{number}-0123abcd"
            session.add(TrainingSample(run_id=run, vote_id=vote.id or 0, user_id=user, kind="thumb", split="train"))
            session.add(
                Policy(
                    version=version, number=number, kind="adapter", state=state, path="none", digest=version, run_id=run
                )
            )
    try:
        open_panel(page)
        expect(page.locator("#taught li")).to_have_text(
            [
                "v9001 learned from 1 vote of yours.",
                "v9002 learned from 1 vote of yours; it was not let to answer anyone.",
            ]
        )
        expect(page.locator("#taught-none")).to_be_hidden()
    finally:
        with server.store.write() as session:  # the server is shared
            for policy in session.exec(select(Policy).where(Policy.number > 9000)):  # type: ignore[arg-type]
                session.delete(policy)


def test_the_copy_is_everything_of_mine(page: Page, server: RunningServer, tmp_path: Path) -> None:
    user = vote_up(page, server)
    open_panel(page)
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download my data").click()
    assert downloading.value.suggested_filename == "kudos-my-data.json"
    downloading.value.save_as(tmp_path / "mine.json")
    mine = json.loads((tmp_path / "mine.json").read_text())
    assert mine["user_id"] == user
    assert [len(conversation["replies"]) for conversation in mine["conversations"]] == [1]
    assert [vote["thumb"] for vote in mine["votes"]] == ["up"]
    expect(page.locator("#my-data-note")).to_have_text("Downloaded")


def test_erasure_asks_twice_then_tells_and_starts_afresh(new_page: NewPage, server: RunningServer, shot) -> None:
    page = new_page(color_scheme="dark")
    asked: list[str] = []

    def erase(route: Route) -> None:
        if route.request.method != "DELETE":
            route.continue_()
            return
        asked.append(route.request.method)
        page.context.clear_cookies()
        erased = {"conversations": 1, "replies": 2, "votes": 1}
        route.fulfill(
            json={"object": "erasure", "user": "u-1", "erased": erased, "policies": ["v3-01234567", "v4-89abcdef"]}
        )

    page.route("**/v1/me", erase)
    vote_up(page, server)
    page.fill("#prompt", "a draft")
    open_panel(page)
    shot(page, "my-data-dark")
    page.click("#erase-ask")
    expect(page.locator("#erase-cancel")).to_be_focused()
    shot(page, "my-data-sure")
    page.keyboard.press("Enter")
    expect(page.locator("#erase-ask")).to_be_focused()
    expect(page.locator("#erase-confirm")).to_be_hidden()
    assert asked == []
    page.click("#erase-ask")
    page.click("#erase")
    expect(page.locator("#erased-counts")).to_have_text("Erased: 1 conversation, 2 answers, 1 vote.")
    expect(page.locator("#erased-policies")).to_have_text(
        "Versions that had learned from your votes: v3, v4. Later ones will not."
    )
    expect(page.locator("#my-data-done")).to_be_focused()
    shot(page, "my-data-erased")
    assert asked == ["DELETE"]
    page.keyboard.press("Enter")
    expect(page.locator("#my-data")).to_be_hidden()
    expect(page.locator("#my-data-open")).to_be_focused()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator(".history-empty")).to_be_visible()
    expect(page.locator("#votes-mine")).to_have_text("0 by you")
    assert page.evaluate("location.hash") == ""


def test_an_erasure_that_fails_says_so_and_erases_nothing_on_the_page(page: Page, server: RunningServer) -> None:
    page.route("**/v1/me", lambda route: route.abort() if route.request.method == "DELETE" else route.continue_())
    vote_up(page, server)
    open_panel(page)
    page.click("#erase-ask")
    page.click("#erase")
    expect(page.locator("#my-data-note")).to_contain_text("could not be reached")
    expect(page.locator("#erase")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_be_visible()


def test_by_keyboard_alone(page: Page) -> None:
    expect(page.locator("#prompt")).to_be_focused()  # the page takes the focus there when it has loaded
    opener = page.locator("#my-data-open")
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#my-data-close")).to_be_focused()
    expect(page.locator("#consent-default")).to_be_enabled()
    page.keyboard.press("Tab")
    expect(page.locator("#consent-default")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#consent-yes")).to_be_checked()
    page.keyboard.press("Tab")
    expect(page.locator("#export")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#erase-ask")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#my-data")).to_be_hidden()
    expect(opener).to_be_focused()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_on_a_phone(new_page: NewPage, shot, locale: str) -> None:
    page = new_page(**PHONE, locale=locale)
    expect(page.locator("#policy-name")).not_to_have_text("…")
    page.locator("#sidebar-open").tap()
    page.locator("#my-data-open").tap()
    expect(page.locator("#consent-default")).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    box = page.locator("#my-data").bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert box["y"] + box["height"] <= 740
    shot(page, f"my-data-phone-{locale}")
    page.keyboard.press("Escape")
    expect(page.locator("#my-data")).to_be_hidden()
    expect(page.locator("#my-data-open")).to_be_focused()
    expect(page.locator("#sidebar")).to_be_in_viewport()
