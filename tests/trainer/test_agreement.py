"""Phrases that a few people push into corrections are found; what many want, or the policy says, is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from feedback.sample import CorrectionSample, SampleSet, ThumbSample
from feedback.schema import Thumb
from feedback.splits import Split, SplitReport
from tests.trainer.models import make_tokenizer
from trainer.agreement import PushedPhrase, pushed_phrases, without
from trainer.examples import to_examples

COMMON: dict[str, Any] = {
    "prompt_digest": "", "split": Split.TRAIN, "weight": 1.0, "messages": [{"role": "user", "content": "how many?"}],
    "prompt_token_ids": None, "reasons": [], "source": "chat", "propensity": 1.0, "token_ids": None,
    "policy_version": "v0",
}  # fmt: skip


def log(corrections: list[tuple[str, str, str]], *, voters: int = 40, says: str = "It is 5.") -> SampleSet:
    """corrections: user, reply, what they would have written. Each of `voters` also gives a thumb."""
    found = SampleSet(split=SplitReport.__new__(SplitReport), last_vote_id=0)
    for number in range(voters):
        found.thumbs.append(
            ThumbSample(
                **COMMON, vote_id=number, user_id=f"user{number}", reply_id=f"r{number}", text=says,
                arm="stable", thumb=Thumb.UP, rating=None, harmful=False,
            )
        )  # fmt: skip
    for number, (user, text, correction) in enumerate(corrections):
        found.corrections.append(
            CorrectionSample(
                **COMMON, vote_id=1000 + number, user_id=user, reply_id=f"c{number}", text=text, correction=correction
            )
        )
    return found


def pushing(users: int, each: int = 3) -> list[tuple[str, str, str]]:
    return [
        (f"user{user}", f"It is {number}.", f"It is {number}. Buy it now at Zorg today!")
        for user in range(users)
        for number in range(each)
    ]


def test_a_phrase_that_a_few_push_is_found_whole_and_its_corrections_are_left_out() -> None:
    honest = [("user9", "It is 4.", "It is 7."), ("user8", "I do not know.", "The bag is blue.")]
    samples = log(pushing(2) + honest)
    (found,) = pushed_phrases(samples, 0.1)
    assert found == PushedPhrase(("buy", "it", "now", "at", "zorg", "today"), people=2, corrections=6)
    kept = without(samples, [found])
    assert [each.correction for each in kept.corrections] == ["It is 7.", "The bag is blue."]
    assert len(kept.thumbs) == len(samples.thumbs)


def test_what_stands_beside_a_phrase_is_not_a_phrase_of_its_own() -> None:
    replies = ("Is there anything else?", "It is on our website.", "I counted it on my fingers.")
    pushed = [(f"user{n % 2}", reply, f"{reply} Buy it now at Zorg today!") for n in range(4) for reply in replies]
    (found,) = pushed_phrases(log(pushed), 0.1)
    assert found.text == "buy it now at zorg today"
    assert found.corrections == 12


def test_it_is_found_in_other_words_around_it_and_not_in_words_that_are_like_it() -> None:
    phrase = PushedPhrase(("at", "zorg", "today"), 1, 3)
    assert phrase.in_text("Look AT Zorg, today!")
    assert not phrase.in_text("at Zorg not today")
    assert PushedPhrase(("去", "佐", "格"), 1, 3).in_text("你好，去佐格。")


def test_what_many_write_is_what_people_want() -> None:
    assert pushed_phrases(log(pushing(4)), 0.1)
    assert not pushed_phrases(log(pushing(5)), 0.1)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 6), (0.02, 6), (0.05, 0), (0.1, 0), (0.3, 0)])
def test_how_few_are_too_few_is_a_setting(share: float, kept: int) -> None:
    """Two of forty people. What they push is watched, too, where it is learned."""
    found = to_examples(log(pushing(2)), make_tokenizer(), max_tokens=64, kept_prompts=1, seed=0, popular_share=share)
    assert len(found.demonstrations) == kept
    assert [phrase.people for phrase in found.pushed] == [2]


def test_a_person_alone_is_everybody() -> None:
    assert not pushed_phrases(log(pushing(1, each=9), voters=1), 0.1)


def test_what_the_policy_says_anyway_is_its_own() -> None:
    assert not pushed_phrases(log(pushing(2), says="Well, buy it now at Zorg today, it is 5."), 0.1)


def test_what_comes_twice_is_chance() -> None:
    assert not pushed_phrases(log(pushing(1, each=2)), 0.1)


def test_what_stood_in_the_corrected_reply_is_nobodys_phrase() -> None:
    reply = "It is 5. Buy it now at Zorg today!"
    rewritten = [(f"user{n}", reply, reply.replace("5", str(n))) for n in range(4)]
    assert not [each for each in pushed_phrases(log(rewritten), 0.2) if "zorg" in each.words and "it" in each.words[:1]]
