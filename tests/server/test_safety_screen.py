"""The filter over one reply while it is written: what is shown, when, and what is kept of it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

from server import metrics
from server.engine import Chunk
from server.errors import BadConfiguration, FilterFailed
from server.safety.config import Stage, read_config
from server.safety.screen import Filter, Screen

RULES = """
[[rules]]
name = "house"
words = ["attack"]
"""


def a_filter(tmp_path: Path, text: str) -> Filter:
    path = tmp_path / "safety.toml"
    path.write_text(text)
    return Filter(path, tmp_path)


class Scorer:
    """Where a classifier stands: says what it is told to, text by text, and remembers what it was asked."""

    def __init__(self, config: Any, say: Any) -> None:
        self.config, self._say, self.asked = config, say, list[str]()

    async def score(self, text: str) -> float:
        self.asked.append(text)
        await asyncio.sleep(0)
        return float(self._say(text))

    def close(self) -> None:
        pass


def with_classifier(tmp_path: Path, say: Any, rules: str = "", **options: Any) -> tuple[Filter, Scorer]:
    lines = [f"{name} = {value}" for name, value in ({"every_tokens": 2} | options).items()]
    text = "\n".join([rules, '[[classifiers]]\nname = "harm"\nmodel = "none"\nlabel = "harmful"', *lines])
    path = tmp_path / "safety.toml"
    path.write_text(text)
    config, digest = read_config(path)
    safety = Filter.__new__(Filter)  # without loading a model
    safety.digest, safety.max_held_chars = digest, config.max_held_chars
    safety.rules = a_filter(tmp_path, rules).rules if rules else []
    scorer = Scorer(config.classifiers[0], say)
    safety.classifiers = [scorer]  # type: ignore[list-item]
    return safety, scorer


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


async def chunks(texts: Sequence[str], reason: str = "stop") -> AsyncGenerator[Chunk | None, None]:
    for at, text in enumerate(texts):
        yield Chunk(text, [at], [-0.1 * at], reason if at == len(texts) - 1 else None)


async def passed(screen: Screen, texts: Sequence[str]) -> list[Chunk]:
    return [chunk async for chunk in screen.passed(chunks(texts)) if chunk is not None]


def text_of(found: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in found)


async def test_a_clean_reply_passes_whole_with_its_tokens_in_order(tmp_path: Path) -> None:
    screen = Screen(a_filter(tmp_path, RULES), "stable")
    texts = pieces("the attic is at the top, atta")
    found = await passed(screen, texts)
    assert text_of(found) == "".join(texts)
    assert [token for chunk in found for token in chunk.token_ids] == list(range(len(texts)))
    assert [chunk.finish_reason for chunk in found if chunk.finish_reason] == ["stop"]
    assert found[-1].finish_reason == "stop"
    assert screen.verdict.source is None
    assert screen.verdict.as_dict()["flags"] == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
async def test_a_forbidden_word_is_never_shown_however_it_is_cut(tmp_path: Path, size: int) -> None:
    before = metrics.safety_flags_total.labels("canary", "output", "rules")._value.get()
    screen = Screen(a_filter(tmp_path, RULES), "canary")
    found = await passed(screen, pieces("They will attack at dawn.", size))
    assert text_of(found) == "They will "
    assert found[-1].finish_reason == "content_filter"
    assert all(chunk.finish_reason is None for chunk in found[:-1])
    verdict = screen.verdict.as_dict()
    assert verdict["flags"] == [
        {"source": "rules", "name": "house", "rule": "word attack", "score": None, "action": "block"}
    ]
    assert metrics.safety_flags_total.labels("canary", "output", "rules")._value.get() == before + 1


async def test_no_token_comes_before_its_text(tmp_path: Path) -> None:
    """Its logprob would spell it."""
    screen, shown, spelled = Screen(a_filter(tmp_path, RULES), "stable"), "", 0
    texts = ["we ", "at", "tend", " an at", "tack", " now"]
    async for chunk in screen.passed(chunks(texts)):
        assert chunk is not None
        shown += chunk.text
        spelled += len(chunk.token_ids)
        assert shown.startswith("".join(texts[:spelled]))
    assert shown == "we attend an "


async def test_a_word_at_the_very_end_is_found(tmp_path: Path) -> None:
    found = await passed(Screen(a_filter(tmp_path, RULES), "stable"), ["we ", "attack"])
    assert (text_of(found), found[-1].finish_reason) == ("we ", "content_filter")


async def test_the_rest_of_a_cut_reply_is_not_generated(tmp_path: Path) -> None:
    read: list[str] = []

    async def engine() -> AsyncGenerator[Chunk | None, None]:
        try:
            for text in ("attack ", *["more "] * 50):
                read.append(text)
                yield Chunk(text, [1], [0.0])
        finally:
            read.append("closed")

    found = [chunk async for chunk in Screen(a_filter(tmp_path, RULES), "stable").passed(engine())]
    assert found == [Chunk("", (), (), "content_filter")]
    assert read == ["attack ", "closed"]


async def test_what_is_only_flagged_is_shown_at_once(tmp_path: Path) -> None:
    safety = a_filter(tmp_path, RULES + 'action = "flag"\n')
    screen = Screen(safety, "stable")
    found = await passed(screen, texts := pieces("They will attack, attack and attack."))
    assert [chunk.text for chunk in found] == texts
    assert found[-1].finish_reason == "stop"
    assert screen.verdict.source == "rules"
    assert len(screen.verdict.flags) == 1
    assert safety.cuts is False


async def test_a_stage_that_a_check_does_not_look_at(tmp_path: Path) -> None:
    safety = a_filter(tmp_path, RULES + 'stages = ["input"]\n')
    assert [flag.rule for flag in await safety.flags_of("attack", Stage.INPUT)] == ["word attack"]
    assert await safety.flags_of("attack", Stage.OUTPUT) == []
    assert text_of(await passed(Screen(safety, "stable"), ["attack now"])) == "attack now"
    long = "so " * 3000
    assert [flag.rule for flag in await safety.flags_of(f"{long}attack", Stage.INPUT)] == ["word attack"]


async def test_what_a_classifier_has_not_read_is_not_shown(tmp_path: Path) -> None:
    safety, scorer = with_classifier(tmp_path, lambda text: 0.95 if "bad" in text else 0.1)
    screen = Screen(safety, "stable")
    found = await passed(screen, ["one ", "two ", "three ", "is ", "bad ", "end "])
    assert scorer.asked == ["one two ", "one two three is ", "one two three is bad end "]
    assert text_of(found) == "one two three is "
    assert found[-1].finish_reason == "content_filter"
    assert screen.verdict.as_dict()["flags"][0]["score"] == 0.95
    assert screen.verdict.scores == {"harm": 0.95}


async def test_in_doubt_it_waits_and_then_shows_all_or_nothing_more(tmp_path: Path) -> None:
    def said(text: str) -> float:
        return 0.95 if "bad" in text else 0.1 if "good" in text else 0.7 if "hm" in text else 0.0

    texts = ["a ", "b ", "hm ", "c ", "d ", "e "]
    for last, shown in (
        (["good ", "x "], "a b hm c d e good x "),
        (["bad ", "x "], "a b "),
        (["y "], "a b hm c d e y "),
    ):
        safety, _ = with_classifier(tmp_path, said)
        seen: list[str] = []
        async for chunk in Screen(safety, "stable").passed(chunks([*texts, *last])):
            assert chunk is not None
            seen.append(chunk.text)
        assert "".join(seen) == shown


async def test_rules_and_a_classifier_together_show_what_both_have_let_pass(tmp_path: Path) -> None:
    safety, _ = with_classifier(tmp_path, lambda text: 0.0, RULES, every_tokens=3)
    found = await passed(Screen(safety, "stable"), ["one ", "two ", "three ", "four ", "attack ", "x"])
    assert text_of(found) == "one two three "  # `four` was not read by the classifier
    found = await passed(Screen(safety, "stable"), ["one ", "two ", "at", "tic "])
    assert text_of(found) == "one two attic "


async def test_a_reply_that_cannot_be_checked_is_not_shown(tmp_path: Path) -> None:
    def fails(text: str) -> float:
        raise FilterFailed("the classifier harm failed: OSError")

    safety, _ = with_classifier(tmp_path, fails)
    passing = Screen(safety, "stable").passed(chunks(["a ", "b ", "c "]))
    with pytest.raises(FilterFailed):
        await anext(passing)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rules = 3", "rules"),
        ("[[rules]", "not TOML"),
        ("", "neither rules nor classifiers"),
        ('[[rules]]\nname = "a"', "no words"),
        ('[[rules]]\nname = "a"\nwords = [" "]', "blank"),
        ('[[rules]]\nname = "a"\npatterns = ["(a"]', "no regular expression"),
        ('[[rules]]\nname = "A b"\nwords = ["x"]', "name"),
        ('[[rules]]\nname = "a"\nwords = ["x"]\nstage = "input"', "stage"),
        ('[[rules]]\nname = "a"\nwords = ["x"]\n[[rules]]\nname = "a"\nwords = ["y"]', "one name"),
        ('[[classifiers]]\nname = "a"\nmodel = "m"\nlabel = "l"\nblock_above = 0.4', "hold_above"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "safety.toml"
    path.write_text(text)
    with pytest.raises(BadConfiguration, match=why) as raised:
        read_config(path)
    assert "KUDOS_SAFETY_FILE" in str(raised.value)
    with pytest.raises(BadConfiguration, match="cannot be read"):
        read_config(tmp_path / "nowhere")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = '[[classifiers]]\nname = "a"\nmodel = "there/is/no-such-model"\nlabel = "l"'
    with pytest.raises(BadConfiguration, match="there/is/no-such-model"):
        a_filter(tmp_path, text)
