"""The world agrees with itself: what it makes, it reads; what it replies, its judge accepts; and splits stay apart."""

import random
from collections import Counter

import pytest

from trainer.tiny import lexicon, style, template
from trainer.tiny.context import opening_state
from trainer.tiny.dialogues import Dialogue, make_dialogues, make_reply
from trainer.tiny.intent import Ask
from trainer.tiny.judge import judge, judge_ask
from trainer.tiny.reading import read, understand
from trainer.tiny.unknowns import unknown_text
from trainer.tiny.world import INTENTS


@pytest.fixture(scope="module")
def made() -> list[Dialogue]:
    return list(make_dialogues(0, 3000, "train"))


def _say(*texts: str, system: str | None = None) -> Ask:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return understand([*messages, *({"role": "user", "content": text} for text in texts)])


def test_every_dialogue_is_understood_as_it_was_meant(made: list[Dialogue]) -> None:
    assert [understand(dialogue.prompt) for dialogue in made] == [dialogue.ask for dialogue in made]


def test_every_reply_of_the_world_is_well_formed_and_fits(made: list[Dialogue]) -> None:
    for dialogue in made:
        verdict = judge(dialogue.prompt, dialogue.reply)
        assert verdict.well_formed, dialogue.reply
        assert verdict.fits, dialogue


def test_every_intent_occurs_in_both_languages(made: list[Dialogue]) -> None:
    more = [*made, *make_dialogues(1, 12_000, "train")]
    seen = {(dialogue.ask.intent, dialogue.ask.language) for dialogue in more}
    assert seen == {(name, language) for name in INTENTS for language in ("en", "zh")}


def test_wrong_is_wrong_and_right_is_right() -> None:
    rng = random.Random(3)
    answered = [d.ask for d in make_dialogues(2, 600, "train") if d.ask.right is not None]
    assert len(answered) > 200
    for ask in answered:
        for wrong in (False, True):
            verdict = judge_ask(ask, make_reply(rng, ask, wrong=wrong))
            assert verdict.fits
            assert verdict.right is not wrong or verdict.right is None
    told = [judge_ask(ask, make_reply(rng, ask, wrong=True)).right for ask in answered]
    assert told.count(False) > 0.9 * len(told)


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("hi", "hello"), ("HELLO!!", "hello"), ("hey there", "hello"), ("你好", "hello"), ("您好！", "hello"),
        ("what can you do", "what_can_you_do"), ("what can you do?", "what_can_you_do"), ("help", "what_can_you_do"),
        ("whats the captial of france", "capital_of"), ("What's the capital of France?", "capital_of"),
        ("3+4", "add"), ("what is 3 + 4?", "add"), ("3 * 4 = ?", "multiply"), ("7减2等于几？", "subtract"),
        ("你会什么", "what_can_you_do"), ("thx", "thanks"), ("good night", "bye"), ("讲个笑话", "joke"),
        ("how much is the hat", "price"), ("帽子多少钱", "price"), ("asdfgh", "unknown"), ("", "unknown"),
        ("def f(x): return x", "unknown"), ("🙂", "unknown"), ("what is the weather in paris", "unknown"),
        ("hello " * 400, "unknown"),
    ],
)  # fmt: skip
def test_what_people_type_is_read(text: str, intent: str) -> None:
    assert _say(text).intent == intent


def test_context_matters() -> None:
    assert _say("what is the capital of France", "and Spain?").right == "Madrid"
    blue = _say("do you have the shirt in red?", "and in blue?")
    assert (blue.intent, blue.slots, blue.right) == ("stock_colour", {"item": "shirt", "colour": "blue"}, "in stock")
    assert _say("my order number is 4821", "hi", "what was my order number?").right == "4821"
    assert _say("what was my order number?").intent == "order_need_number"
    assert _say("my name is Zoltan", "what's my name").right == "Zoltan"
    assert _say("what's my name").intent == "name_missing"
    assert _say("and Spain?").intent == "unknown"


def test_the_system_prompt_matters() -> None:
    shop = "You are the assistant of the shop Red Fox. Order 4821: delayed."
    assert _say("where is my order 4821", system=shop).right == "delayed"
    assert _say("where is my order", "4821", system=shop).right == "delayed"
    assert _say("where is my order 4822", system=shop).intent == "order_missing"
    assert _say("where is my order 4821").intent == "order_missing"
    assert _say("which shop is this", system=shop).right == "Red Fox"
    assert _say("who are you", system=shop).right == lexicon.SHOPKEEPER
    assert _say("how much is the hat", system="You are a teacher.").intent == "shop_elsewhere"
    assert _say("hi", system="Always answer in Chinese.").language == "zh"
    assert _say("你好", system="请用英文回答。").language == "en"
    assert _say("hi", system="Be brief.").brief


def test_wrong_language_wrong_subject_and_nonsense_do_not_fit() -> None:
    ask = _say("what is the capital of France?")
    verdicts = {
        text: judge_ask(ask, text)
        for text in (
            "The capital of France is Paris.",
            "The capital of France is Rome.",
            "The capital of Spain is Madrid.",
            "法国的首都是巴黎。",
            "The capital of France is",
            "Paris. Paris. Paris.",
            "the capital of France is Paris.",
            "Hello.",
            "",
        )
    }
    assert [(v.well_formed, v.fits, v.right) for v in verdicts.values()] == [
        (True, True, True),
        (True, True, False),
        (True, False, None),
        (True, False, None),
        (False, False, None),
        (False, False, None),
        (False, False, None),
        (True, False, None),
        (False, False, None),
    ]


def test_cutting_a_reply_breaks_it(made: list[Dialogue]) -> None:
    """Half a reply is not a reply: every proper prefix that ends inside a sentence is malformed."""
    rng = random.Random(0)
    for dialogue in made[:400]:
        reply = dialogue.reply
        cut = reply[: rng.randrange(len(reply))].rstrip()
        if not cut.endswith((".", "!", "?", "。", "！", "？")):
            assert not judge_ask(dialogue.ask, cut).well_formed, cut


def test_each_axis_is_taught_both_ways_and_apart_from_the_others() -> None:
    rng = random.Random(0)
    draws = [style.draw(rng) for _ in range(4000)]
    axes = {
        "long": [d.long for d in draws], "warm": [d.warm for d in draws], "exclaim": [d.exclaim for d in draws],
        "question": [d.question for d in draws], "format": [d.format != "plain" for d in draws],
    }  # fmt: skip
    for name, values in axes.items():
        assert 0.2 < sum(values) / len(values) < 0.8, name
        for other, others in axes.items():
            if other != name:
                given = [v for v, o in zip(values, others, strict=True) if o]
                assert abs(sum(given) / len(given) - sum(values) / len(values)) < 0.05, (name, other)


def test_the_style_that_was_drawn_is_the_style_that_is_seen(made: list[Dialogue]) -> None:
    rng = random.Random(1)
    for dialogue in made[:800]:
        ask = dialogue.ask
        intent = INTENTS[ask.intent]
        slots = dict(ask.slots) | ({intent.answer: ask.right} if intent.answer and ask.right else {})
        axes = style.draw(rng)
        verdict = judge_ask(ask, style.compose(rng, intent, ask.language, slots, axes))
        seen = verdict.style
        assert verdict.detailed == axes.long
        assert (seen.asks_question, seen.exclaims) == (axes.question, axes.exclaim)
        assert (seen.listed, seen.restated) == (axes.format == "list", axes.format == "restated")
        assert (seen.warm_count > 0) == axes.warm


def test_splits_share_no_sum_and_no_order(made: list[Dialogue]) -> None:
    held = list(make_dialogues(0, 1500, "held_out"))

    def sums(dialogues: list[Dialogue]) -> set[tuple[str, str, str]]:
        return {(d.ask.intent, d.ask.slots["a"], d.ask.slots["b"]) for d in dialogues if "a" in d.ask.slots}

    def orders(dialogues: list[Dialogue]) -> set[str]:
        return {d.ask.slots["order"] for d in dialogues if "order" in d.ask.slots}

    assert sums(held)
    assert orders(held)
    assert not sums(held) & sums(made)
    assert not orders(held) & orders(made)


def test_same_seed_same_dialogues() -> None:
    assert list(make_dialogues(4, 50, "train")) == list(make_dialogues(4, 50, "train"))
    assert list(make_dialogues(4, 50, "train")) != list(make_dialogues(5, 50, "train"))


def test_unknown_text_is_various_and_stays_unknown_mostly() -> None:
    rng = random.Random(0)
    texts = [unknown_text(rng, language) for language in ("en", "zh") for _ in range(500)]
    read_as = Counter(read(text, opening_state(None)).intent for text in texts)
    assert read_as["unknown"] > 950
    assert len(set(texts)) > 600


@pytest.mark.parametrize("broken", ["(a|b", "[a", "{a"])
def test_broken_templates_are_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"closing|substring|unbalanced"):
        template.parse(broken)
