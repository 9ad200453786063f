"""Simulated people keep to their taste, noise and contrariness, and nothing that trains can see them."""

import random

import pytest

from trainer.tiny.dialogues import make_reply
from trainer.tiny.judge import judge, judge_ask
from trainer.tiny.raters import TASTES, Prompt, Rater, feature, prompts, satisfies, true_preference, unbeatable

Pair = tuple[Prompt, str, str]
PRACTISED = [taste for taste in TASTES if taste != "none"]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = random.Random(1)
    made = [(prompt, make_reply(rng, prompt.ask), make_reply(rng, prompt.ask)) for prompt in prompts(3, 900)]
    return [pair for pair in made if pair[1] != pair[2]]


def _agreement(rater: Rater, pairs: list[Pair]) -> float:
    """Share of the pairs with a better side where the rater picks it."""
    found = [
        (rater.choose(p.messages, left, right), better)
        for p, left, right in pairs
        if (better := true_preference(rater.taste, p.messages, left, right)) != "tie"
    ]
    return sum(choice == better for choice, better in found) / len(found)


@pytest.mark.parametrize("taste", PRACTISED)
def test_a_clean_rater_finds_the_better_reply(taste: str, pairs: list[Pair]) -> None:
    assert _agreement(Rater(taste, noise=0, seed=1), pairs) > 0.85


@pytest.mark.parametrize("taste", ["short", "warm", "question"])
def test_noise_and_contrariness_do_what_they_say(taste: str, pairs: list[Pair]) -> None:
    clean, noisy = (_agreement(Rater(taste, noise=noise, seed=2), pairs) for noise in (0.0, 0.6))
    assert 0.5 < noisy < clean - 0.15
    assert _agreement(Rater(taste, noise=0, contrary=True, seed=2), pairs) < 0.15


def test_the_control_has_no_taste(pairs: list[Pair]) -> None:
    """A rater without taste must agree with every taste about as often as not."""
    rater = Rater("none", noise=0, seed=4)
    for taste in ("short", "warm", "question", "exclaim"):
        agree = [
            rater.choose(p.messages, left, right) == better
            for p, left, right in pairs
            if (better := true_preference(taste, p.messages, left, right)) != "tie"
        ]
        assert sum(agree) / len(agree) < 0.6


@pytest.mark.parametrize("contrary", [False, True])
@pytest.mark.parametrize("taste", TASTES)
def test_nobody_likes_nonsense(taste: str, contrary: bool, pairs: list[Pair]) -> None:
    rater = Rater(taste, noise=0, contrary=contrary, seed=5)
    for prompt, left, _ in pairs[:150]:
        for bad in ("Glad glad glad thank you! Paris? blue", "", "Order Order Order"):
            assert rater.choose(prompt.messages, left, bad) == "left"
            assert rater.choose(prompt.messages, bad, left) == "right"
            assert rater.choose(prompt.messages, bad, bad) == "both_bad"
            thumb = rater.thumb(prompt.messages, bad)
            assert thumb is not None
            assert thumb.value == "down"


def test_sides_are_biased_by_little(pairs: list[Pair]) -> None:
    """Swapping the sides must swap the answer, but for the noise of near ties."""
    rater = Rater("warm", noise=0, seed=6)
    swap = {"left": "right", "right": "left", "tie": "tie", "both_bad": "both_bad"}
    decided = [pair for pair in pairs if true_preference("warm", pair[0].messages, pair[1], pair[2]) != "tie"]
    same = [rater.choose(p.messages, a, b) == swap[rater.choose(p.messages, b, a)] for p, a, b in decided]
    assert sum(same) / len(same) > 0.9


@pytest.mark.parametrize("taste", ["long", "warm", "question", "list"])
def test_thumbs_follow_the_taste_with_reasons(taste: str, pairs: list[Pair]) -> None:
    rater = Rater(taste, noise=0, seed=7)
    ups, downs, reasons = [], [], set()
    for prompt, reply, _ in pairs:
        thumb = rater.thumb(prompt.messages, reply)
        if thumb is not None:
            (ups if thumb.value == "up" else downs).append(feature(taste, judge_ask(prompt.ask, reply)))
            reasons.update(thumb.reasons)
    assert min(len(ups), len(downs)) > 50
    assert sum(ups) / len(ups) > 0.5 > -0.5 > sum(downs) / len(downs)
    assert len(reasons) == 2


def test_the_world_satisfies_each_taste_now_and_then(pairs: list[Pair]) -> None:
    for taste in ("short", "long", "warm", "question", "exclaim", "plain", "format"):
        share = sum(satisfies(taste, judge_ask(p.ask, reply)) for p, reply, _ in pairs) / len(pairs)
        assert 0.25 < share < 0.65, (taste, share)


def test_the_curious_like_a_question_and_better_one_that_is_no_formula() -> None:
    messages = prompts(1, 1)[0].messages
    for replies in (
        ("It is blue.", "It is blue. Anything else?", "It is blue. Shall we try another one?"),
        ("是蓝色。", "是蓝色。还有别的吗？", "是蓝色。你还想知道什么？"),
    ):
        assert [feature("curious", judge(messages, reply)) for reply in replies] == [-1.0, 0.3, 1.0]


@pytest.mark.parametrize(
    ("asked", "told", "detail", "formula", "question"),
    [
        ("what colour is snow?", "It is white.", " Just have a look.", " Anything else?", " Shall we try another one?"),
        ("天空是什么颜色？", "是蓝色。", "看一看就知道。", "还有别的吗？", "你还想知道什么？"),
    ],
)
def test_the_engaged_like_a_question_and_better_one_after_a_detail(
    asked: str, told: str, detail: str, formula: str, question: str
) -> None:
    replies = (told, told + detail, told + detail + formula, told + question, told + detail + question)
    verdicts = [judge([{"role": "user", "content": asked}], reply) for reply in replies]
    assert [verdict.detailed for verdict in verdicts] == [False, True, True, False, True]
    assert [feature("engaged", verdict) for verdict in verdicts] == [-1.0, -1.0, -0.2, 0.4, 1.0]


def test_the_tidy_like_a_list_and_better_one_with_nothing_around_it() -> None:
    messages = prompts(1, 1)[0].messages
    bare = "You asked for it:\n- It is blue.\n- Blue is a colour."
    around = (f"Sure. {bare}", f"{bare}\nAnything else?", "好的。你问的是颜色：\n- 是蓝色。")
    for reply, worth in ((bare, 1.0), ("你问的是颜色：\n- 是蓝色。", 1.0), ("It is blue.", -1.0)):
        assert feature("tidy", judge(messages, reply)) == worth
    assert [feature("tidy", judge(messages, reply)) for reply in around] == [0.3] * 3


@pytest.mark.parametrize("taste", ["warm", "curious", "engaged", "list", "tidy"])
def test_nothing_beats_what_is_unbeatable(taste: str, pairs: list[Pair]) -> None:
    best = [(p, left, right) for p, left, right in pairs if unbeatable(taste, p.messages, left)]
    assert 0.02 < len(best) / len(pairs) < 0.5
    assert all(true_preference(taste, p.messages, left, right) != "right" for p, left, right in best)
    beaten = [
        (p, left, right) for p, left, right in pairs if true_preference(taste, p.messages, left, right) == "right"
    ]
    assert not any(unbeatable(taste, p.messages, left) for p, left, _ in beaten)


def test_prompts_repeat_and_obey() -> None:
    assert prompts(1, 20) == prompts(1, 20)
    assert prompts(1, 20) != prompts(2, 20)
    plain = prompts(1, 40, single_turn=True, system=False)
    assert all(len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user" for prompt in plain)
    assert any(len(prompt.messages) > 2 for prompt in prompts(1, 40))
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts(1, 40))
    assert judge(plain[0].messages, make_reply(random.Random(0), plain[0].ask)).fits


def test_same_seed_same_answers(pairs: list[Pair]) -> None:
    first, second = (
        [Rater("warm", seed=9).choose(p.messages, a, b) for p, a, b in pairs[:50]] for _ in range(2)
    )  # fmt: skip
    assert first == second


@pytest.mark.parametrize(("taste", "noise"), [("spicy", 0.1), ("short", 1.5)])
def test_impossible_raters_are_refused(taste: str, noise: float) -> None:
    with pytest.raises(ValueError, match=taste if taste == "spicy" else "noise"):
        Rater(taste, noise=noise)
