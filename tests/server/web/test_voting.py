"""Thumbs with reasons, changed and withdrawn, and two answers compared: each is the effective vote in the log."""

import pytest
from playwright.sync_api import Page, expect

from .conftest import RunningServer
from .steps import (
    answered,
    effective_vote,
    eventually,
    reads_as,
    reply_id,
    revisions,
    say,
    stored_comparison,
    stored_reply,
)

pytestmark = [pytest.mark.browser, pytest.mark.engine]


def test_thumb_with_reason_comment_and_correction(page: Page, server: RunningServer, shot) -> None:
    say(page, "How much is the backpack?")
    answer = answered(page)
    target = reply_id(answer)
    answer.locator('[data-thumb="down"]').click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, counted")
    vote = effective_vote(server.store, target)
    assert vote
    assert (vote.thumb, vote.reasons) == ("down", [])

    answer.locator('[data-reason="wrong"]').click()
    answer.locator('[data-reason="too_long"]').click()
    answer.get_by_label("Comment", exact=True).fill("价钱 is missing")
    answer.get_by_role("button", name="Write a better answer").click()
    answer.get_by_label("A better answer", exact=True).fill("It costs 60 euros.")
    shot(page, "vote-details")
    answer.get_by_role("button", name="Save", exact=True).click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, saved")
    vote = effective_vote(server.store, target)
    assert vote
    assert vote.thumb == "down"
    assert sorted(vote.reasons) == ["too_long", "wrong"]
    assert (vote.comment, vote.correction, vote.harmful) == ("价钱 is missing", "It costs 60 euros.", False)
    shot(page, "voted")


def test_words_that_the_server_did_not_take_are_there_to_be_sent_again(page: Page, server: RunningServer) -> None:
    say(page, "How much is the mug?")
    answer = answered(page)
    answer.locator('[data-thumb="down"]').click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, counted")
    answer.locator('[data-reason="wrong"]').click()
    answer.get_by_label("Comment", exact=True).fill("the price is missing")
    answer.get_by_role("button", name="Write a better answer").click()
    answer.get_by_label("A better answer", exact=True).fill("It costs 5 euros.")
    page.route("**/feedback", lambda route: route.abort())
    answer.get_by_role("button", name="Save", exact=True).click()
    expect(answer.get_by_label("A better answer", exact=True)).to_have_value("It costs 5 euros.", timeout=20_000)
    expect(answer.get_by_label("Comment", exact=True)).to_have_value("the price is missing")
    vote = effective_vote(server.store, reply_id(answer))
    assert vote
    assert vote.correction is None
    page.unroute("**/feedback")
    answer.get_by_role("button", name="Save", exact=True).click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, saved")
    vote = effective_vote(server.store, reply_id(answer))
    assert vote
    assert (vote.reasons, vote.comment, vote.correction) == (["wrong"], "the price is missing", "It costs 5 euros.")


def test_change_and_withdraw(page: Page, server: RunningServer) -> None:
    say(page, "What is 7 + 5?")
    answer = answered(page)
    target = reply_id(answer)
    note, mine = answer.locator(".vote-note"), page.locator("#votes-mine")
    expect(mine).to_have_text("0 by you")
    answer.locator('[data-thumb="up"]').click()
    expect(note).to_have_text("Thank you, counted")
    expect(mine).to_have_text("1 by you")
    answer.locator('[data-thumb="down"]').click()
    expect(note).to_have_text("Vote changed")
    vote = effective_vote(server.store, target)
    assert vote
    assert vote.thumb == "down"
    answer.get_by_role("button", name="Withdraw vote").click()
    expect(note).to_have_text("Vote withdrawn")
    for thumb in ("up", "down"):
        expect(answer.locator(f'[data-thumb="{thumb}"]')).to_have_attribute("aria-pressed", "false")
    expect(mine).to_have_text("0 by you")
    assert effective_vote(server.store, target) is None
    assert [row.revision for row in revisions(server.store, target)] == [1, 2, 3]


def test_a_hasty_change_of_mind_ends_as_the_last_one(page: Page, server: RunningServer) -> None:
    say(page, "Hello")
    answer = answered(page)
    for thumb in ("up", "down", "up", "down"):
        answer.locator(f'[data-thumb="{thumb}"]').click()
    vote = eventually(
        lambda: effective_vote(server.store, reply_id(answer)), lambda vote: bool(vote and vote.revision == 4)
    )
    assert vote
    assert (vote.thumb, vote.revision) == ("down", 4)


def test_a_vote_whose_answer_was_lost_counts_once(page: Page, server: RunningServer) -> None:
    """The first request reaches the server and its answer is lost; the page sends it again with the same key."""
    say(page, "Thank you")
    answer = answered(page)
    lost = []

    def lose_the_first(route) -> None:
        if not lost:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    page.route("**/feedback", lose_the_first)
    answer.locator('[data-thumb="up"]').click()
    expect(answer.locator(".vote-note")).to_have_text("Thank you, counted")
    assert lost == [200]
    assert [row.thumb for row in revisions(server.store, reply_id(answer))] == ["up"]


def test_a_refused_vote_is_not_shown_as_given(page: Page, server: RunningServer) -> None:
    say(page, "Hello")
    answer = answered(page)
    page.route("**/feedback", lambda route: route.continue_(post_data='{"thumb": "sideways"}'))
    with page.expect_response("**/feedback") as refused:
        answer.locator('[data-thumb="up"]').click()
    expect(page.locator(".notice-error")).to_contain_text(refused.value.json()["error"]["message"])
    expect(answer.locator('[data-thumb="up"]')).to_have_attribute("aria-pressed", "false")
    assert effective_vote(server.store, reply_id(answer)) is None


def compare(page: Page, text: str) -> tuple[str, dict[str, str]]:
    """The comparison's id, and what each side reads as."""
    page.click("#compare-toggle")
    say(page, text)
    expect(page.locator(".choice").first).to_be_visible()
    expect(page.locator(".pane .answer-text.markdown")).to_have_count(2)
    identifier = page.locator(".comparison").get_attribute("data-comparison")
    assert identifier
    texts = {
        side: page.locator(f'.pane[data-side="{side}"] .answer-text').text_content() or "" for side in ("left", "right")
    }
    return identifier, texts


def test_compare_choose_and_reveal(page: Page, server: RunningServer, shot) -> None:
    identifier, texts = compare(page, "How are you today?")
    comparison = stored_comparison(server.store, identifier)
    left = stored_reply(server.store, comparison.left_reply_id)
    right = stored_reply(server.store, comparison.right_reply_id)
    assert texts == {"left": reads_as(left.text), "right": reads_as(right.text)}
    thread = page.locator(".comparison")
    for version in (left.policy_version, right.policy_version):
        assert version not in (thread.inner_html()), "a policy was named before the choice"
    expect(page.locator(".pane .policy-tag")).to_have_count(0)
    shot(page, "compare-desktop-light")

    page.click('[data-choice="right"]')
    tags = page.locator(".pane .policy-tag")
    expect(tags).to_have_count(2)
    assert [tags.nth(i).get_attribute("title") for i in range(2)] == [left.policy_version, right.policy_version]
    expect(page.locator('.pane[data-side="right"]')).to_have_class("pane is-preferred")
    vote = effective_vote(server.store, identifier)
    assert vote
    assert (vote.choice, vote.target_kind) == ("right", "comparison")
    shot(page, "compare-chosen")

    page.get_by_role("button", name="Details").click()
    page.locator('[data-reason="clear"]').click()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".vote-note")).to_have_text("Thank you, saved")
    page.click('[data-choice="tie"]')
    expect(page.locator(".vote-note")).to_have_text("Vote changed")
    vote = effective_vote(server.store, identifier)
    assert vote
    assert vote.choice == "tie"
    expect(page.locator(".pane.is-preferred")).to_have_count(0)

    page.reload()
    expect(page.locator('[data-choice="tie"]')).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".pane .policy-tag")).to_have_count(2)
    page.get_by_role("button", name="Details").click()
    page.get_by_role("button", name="Withdraw vote").click()
    expect(page.locator(".vote-note")).to_have_text("Vote withdrawn")
    assert effective_vote(server.store, identifier) is None


def test_both_bad_with_a_reason(page: Page, server: RunningServer) -> None:
    identifier, _ = compare(page, "What is the capital of Japan?")
    page.click('[data-choice="both_bad"]')
    expect(page.locator(".vote-note")).to_have_text("Thank you, counted")
    vote = effective_vote(server.store, identifier)
    assert vote
    assert vote.choice == "both_bad"


def test_reload_before_the_choice_still_hides_the_policies(page: Page, server: RunningServer) -> None:
    identifier, texts = compare(page, "What can you do?")
    comparison = stored_comparison(server.store, identifier)
    version = stored_reply(server.store, comparison.left_reply_id).policy_version
    with page.expect_response("**/v1/conversations/*") as loaded:
        page.reload()
    assert version not in loaded.value.text()
    expect(page.locator('[data-choice="left"]')).to_be_visible()
    assert page.locator('.pane[data-side="left"] .answer-text').text_content() == texts["left"]
    expect(page.locator(".pane .policy-tag")).to_have_count(0)


def test_chat_goes_on_after_a_comparison_with_the_preferred_answer(page: Page, server: RunningServer) -> None:
    identifier, _ = compare(page, "My name is Tom")
    right = stored_reply(server.store, stored_comparison(server.store, identifier).right_reply_id)
    page.click('[data-choice="right"]')
    expect(page.locator(".vote-note")).to_have_text("Thank you, counted")
    page.click("#compare-toggle")
    say(page, "What is my name?")
    reply = stored_reply(server.store, reply_id(answered(page, 2)))
    assert [message["content"] for message in reply.messages if message["role"] == "assistant"] == [right.text]
