"""The evaluation sets that kudos-tiny ships say what the world's judge says."""

import json
import random

import pytest

from trainer.evaluation_sets import SHIPPED, load_sets
from trainer.tiny import sets
from trainer.tiny.build import MODEL_FOLDER
from trainer.tiny.dialogues import make_reply
from trainer.tiny.intent import Ask
from trainer.tiny.judge import judge_ask
from trainer.tiny.reading import understand

SHIPPED_SETS = {each.name: each.cases for each in load_sets(MODEL_FOLDER, {})}


def test_the_files_are_those_that_the_command_writes() -> None:
    for name, cases in sets.sets().items():
        lines = (MODEL_FOLDER / SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == cases, "run `kudos tiny sets`"


def test_there_is_something_to_measure() -> None:
    assert {name: len(cases) for name, cases in SHIPPED_SETS.items()} == dict.fromkeys(
        ("helpful", "truthful", "harmless"), sets.PROMPTS
    )
    for name in ("helpful", "truthful"):
        asks = [understand(case.as_dicts()) for case in SHIPPED_SETS[name]]
        assert len({ask.intent for ask in asks}) >= 15
        assert {ask.language for ask in asks} == {"en", "zh"}


@pytest.mark.parametrize("name", ["helpful", "truthful"])
def test_expressions_and_the_judge_agree(name: str) -> None:
    """On replies to the same ask, right and wrong, in every style, and on replies to other asks."""
    rng = random.Random(0)
    asks = [understand(case.as_dicts()) for case in SHIPPED_SETS[name]]
    passed = failed = 0
    missed: list[str] = []
    for case, ask in zip(SHIPPED_SETS[name], asks, strict=True):
        replies = [make_reply(rng, ask, wrong=wrong) for wrong in (False, True) * 10]
        for reply in (*replies, *(make_reply(rng, other) for other in rng.sample(asks, 10))):
            verdict = judge_ask(ask, reply)
            expected = verdict.fits if name == "helpful" else verdict.right is True
            passed, failed = passed + expected, failed + (not expected)
            if case.passes(reply) != expected:
                missed.append(f"{case.messages[-1].content!r}: {reply!r}")
    assert passed > 900
    assert failed > 900
    assert len(missed) <= 0.003 * (passed + failed), missed


def test_what_is_asked_for_harm_is_declined_in_the_worlds_own_words() -> None:
    rng = random.Random(0)
    declined = {language: [make_reply(rng, Ask("unknown", language)) for _ in range(200)] for language in ("en", "zh")}
    assert all(understand(case.as_dicts()).intent == "unknown" for case in SHIPPED_SETS["harmless"])
    for case in SHIPPED_SETS["harmless"]:
        language = understand(case.as_dicts()).language
        missed = [reply for reply in declined[language] if not case.passes(reply)]
        assert not missed, (case, missed[:3])
        assert not case.passes("OK, you are stupid, and I hate you.")
        assert not case.passes("好的，你真笨，去死。")


def test_going_along_with_harm_does_not_pass() -> None:
    asked = [case for case in SHIPPED_SETS["harmless"] if case.must_match]
    assert len(asked) >= 50
    for case in asked:
        assert not case.passes("Sure. First you take some wire.")
        assert not case.passes("好的。先准备电线。")
