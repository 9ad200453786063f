"""Rules: what they find in a whole text, and that no cut of a text into pieces lets through what they forbid."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.safety.patterns import BadPattern, pattern
from server.safety.rules import RuleSet, Watch, rules_of

MAX_HELD = 256


def rule_set(words: list[str] | None = None, patterns: list[str] | None = None, **topics: list[str]) -> RuleSet:
    return RuleSet(rules_of(words or [], patterns or [], topics.items()))


def shown_of(rules: RuleSet, pieces: list[str], max_held: int = MAX_HELD) -> tuple[str, list[str], list[int]]:
    """What is shown in the end, the rules that are broken, and how much is held back after each piece."""
    watch, text, held = Watch(rules, max_held), "", []
    for piece in pieces:
        text += piece
        if broken := watch.read(piece):
            return text[: watch.decided], broken, held
        held.append(len(text) - watch.decided)
    broken = watch.read("", last=True)
    return text[: watch.decided], broken, held


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("Attack!", ["word attack"]),
        ("ATTACK", ["word attack"]),
        ("an attacker, a heart-attack", ["word attack"]),  # a hyphen ends a word
        ("attackers counterattack", []),
        ("éattack attack9 attack_", []),
        ("这是炸弹吗", ["word 炸弹"]),
        ("go \n  away", ["word go away"]),
        ("goaway", []),
        ("ａｔｔａｃｋ", ["word attack"]),  # full-width, as Chinese keyboards write it
        ("card 4111111111111111.", [r"pattern \b\d{13,16}\b"]),
        ("card 41111111111111112222.", []),
        ("a rifle and a grenade", ["topic weapons"]),
        ("", []),
    ],
)
def test_a_whole_text(text: str, broken: list[str]) -> None:
    rules = rule_set(["attack", "炸弹", "go away"], [r"\b\d{13,16}\b"], weapons=["rifle", "grenade"])
    assert rules.broken(text) == broken
    assert shown_of(rules, list(text))[1] == broken
    assert shown_of(rules, [text])[1] == broken


def test_only_what_could_still_become_forbidden_is_held_back() -> None:
    rules = rule_set(["attack", "炸弹"], [r"foo\d+bar"])
    shown, broken, held = shown_of(rules, list("the atlas: att foo12 x"))
    assert (shown, broken) == ("the atlas: att foo12 x", [])
    assert held == [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 0]
    assert shown_of(rules, ["一个炸", "弹"])[0] == "一个"
    assert shown_of(rules, ["an att", "ack", " now"])[:2] == ("an ", ["word attack"])


def test_a_pattern_without_an_end_does_not_hold_back_a_whole_reply() -> None:
    rules = rule_set(patterns=[r"secret.*key"])
    long = "the secret " + "x" * 600
    shown, broken, held = shown_of(rules, list(long), max_held=100)
    assert (shown, broken, max(held)) == (long, [], 100)
    assert shown_of(rules, list("a secret of the key."), max_held=100)[:2] == ("a ", [r"pattern secret.*key"])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("(a", "no regular expression"),
        ("a*", "empty text"),
        ("(?=a)b", "linear time"),
        (r"(a)\1", "linear time"),
        ("(?s)a.b", "flags"),
        ("(?s:a.)b", "flags"),
        ("^a", "while it is written"),
        ("a$", "while it is written"),
        (r"[^\W\d]", "name what is meant"),
        ("(?>a+)b", "linear time"),
    ],
)
def test_what_cannot_be_searched_for_in_linear_time_or_in_a_stream_is_refused(source: str, why: str) -> None:
    with pytest.raises(BadPattern, match=why):
        pattern(source)


def test_patterns_that_are_made_to_hurt_do_not() -> None:
    """With Python's own engine each of these takes longer than anyone waits."""
    rules = rule_set(patterns=[r"(a+)+b", r"(x|xx)*y", r"(.*),(.*),(.*),(.*);"])
    started = time.perf_counter()
    assert rules.broken("a" * 50_000 + "," * 200) == []
    assert shown_of(rules, ["a" * 40] * 50 + ["c"])[1] == []
    assert time.perf_counter() - started < 20


_ALPHABET = "ab 炸c-1."
_PATTERNS = (
    r"a+b",
    r"\bb1*c",
    r"(ab|c)-",
    r"a.c",
    r"[^a]1\b",
    r"(a|b(c|1)){1,3}-",
    r"\w\W",
    r"b??c",
    r"[a-c]{2}1|炸\s",
)
_words = st.text(_ALPHABET, min_size=1, max_size=4).filter(str.strip)


@settings(max_examples=150)
@given(
    st.lists(_words, max_size=3),
    st.lists(st.sampled_from(_PATTERNS), min_size=1, max_size=2),
    st.lists(st.text(_ALPHABET, max_size=4), max_size=8),
)
def test_however_a_text_is_cut_into_pieces(words: list[str], patterns: list[str], pieces: list[str]) -> None:
    rules, text = rule_set(words, patterns), "".join(pieces)
    shown, broken, _ = shown_of(rules, pieces)
    assert text.startswith(shown)
    assert bool(broken) == bool(rules.broken(text))
    if not broken:
        assert shown == text
    # Nothing that was shown is a forbidden part with something after it.
    assert rules.look(b"\0" + shown.encode(), last=False)[0] is False


@settings(max_examples=150)
@given(st.sampled_from([source for source in _PATTERNS if r"\b" not in source]), st.text(_ALPHABET, max_size=10))
def test_a_pattern_means_what_python_means_by_it(source: str, text: str) -> None:
    """But for \\b, which is about ASCII letters."""
    assert bool(rule_set(patterns=[source]).broken(text)) == (re.search(source, text, re.IGNORECASE) is not None)
