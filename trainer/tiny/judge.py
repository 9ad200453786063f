"""Judges a reply: is it a reply of the world, does it answer what was asked, is it right, and in which style.

By structure: the reply must be one that the grammar can make (style.reply_expression); nothing is looked up in a
list of known replies. A false fact is well-formed, and fits; it is just not right.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from trainer.tiny import lexicon, style
from trainer.tiny.intent import Ask
from trainer.tiny.lexicon import Language
from trainer.tiny.reading import language_of, understand
from trainer.tiny.world import INTENTS


@dataclass(frozen=True)
class Style:
    """What can be seen of a reply's manner.

    length: words in English, characters divided by 1.7 in Chinese, so that the two compare. warm_count: kind words.
    asks_formula: its question asks for nothing in particular. restated, listed: the format; at most one of them holds.
    bare: a list that nothing comes before or after.
    """

    language: Language
    characters: int
    length: float
    warm_count: int
    asks_question: bool
    asks_formula: bool
    exclaims: bool
    restated: bool
    listed: bool
    bare: bool


@dataclass(frozen=True)
class Verdict:
    """well_formed: a reply of the world. fits: on what was asked, in the right language. right: None if it names no
    answer that could be right or wrong. detailed: it tells something beyond what was asked."""

    well_formed: bool
    fits: bool
    right: bool | None
    detailed: bool
    style: Style


@cache
def _restatement(language: Language) -> re.Pattern[str]:
    heads = [intent.wording(language).restate for intent in INTENTS.values()]
    bodies = "|".join(sorted({re.escape(head.split("{")[0]) for head in heads}, key=len, reverse=True))
    return re.compile(rf"(?:^|[.!。！]\s*)(?:{bodies})[^.!。！:：]*[.!。！](?=.)")


def style_of(reply: str) -> Style:
    language = language_of(reply, "en")
    head, *points = reply.split("\n")
    listed = any(point.startswith("- ") for point in points)
    words = len(re.findall(r"[A-Za-z0-9']+", reply)) + len(re.findall(r"[\u4e00-\u9fff]", reply)) / 1.7
    return Style(
        language=language,
        characters=len(reply),
        length=words,
        warm_count=len(style.WARM_WORDS[language].findall(reply)),
        asks_question=reply.rstrip().endswith(("?", "？")),
        asks_formula=reply.rstrip().rstrip("?？").endswith(style.FORMULAS[language]),
        exclaims="!" in reply or "！" in reply,
        restated=not listed and _restatement(language).search(reply) is not None,
        listed=listed,
        bare=listed and all(point.startswith("- ") for point in points) and not re.search(r"[.!?。！？]", head),
    )


def _slots_in(reply: str, name: str, language: Language) -> dict[str, set[str]] | None:
    """What the reply names, slot by slot, its detail as `style.DETAIL`; None if it is no reply of that intent."""
    found = style.reply_expression(name, language).fullmatch(reply)
    if found is None:
        return None
    named: dict[str, set[str]] = {}
    for group, text in found.groupdict().items():
        if text is not None:
            slot = group.split("__")[0]
            value = text if slot == style.DETAIL else lexicon.value_of(slot, text, language)
            named.setdefault(slot, set()).add(value)
    return named


def judge_ask(ask: Ask, reply: str) -> Verdict:
    """Judge a reply to an ask that is already understood."""
    reply = reply.strip()
    seen = style_of(reply)
    if not style.starts_sentences(reply):
        return Verdict(False, False, None, False, seen)
    named = _slots_in(reply, ask.intent, ask.language)
    if named is None:
        formed = any(_slots_in(reply, name, language) is not None for language in ("zh", "en") for name in INTENTS)
        return Verdict(formed, False, None, False, seen)
    detailed = named.pop(style.DETAIL, None) is not None
    answer = INTENTS[ask.intent].answer
    asked = dict(ask.slots)
    fits = all(values == {asked[slot]} if slot in asked else len(values) == 1 for slot, values in named.items())
    right: bool | None = None
    if fits and answer in named and ask.right is not None:
        right = named[answer] == {ask.right}
    return Verdict(True, fits, right, detailed, seen)


def judge(messages: Sequence[Mapping[str, str]], reply: str) -> Verdict:
    """Judge a reply to a conversation whose last user message it answers."""
    return judge_ask(understand(messages), reply)
