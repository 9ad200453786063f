"""How a reply is put together, in ways that people may prefer, and the regular expression of all such replies.

The axes are drawn independently of each other and of what was asked: length, warmth, exclamation, a closing
question, and format (plain, the ask restated, or a list). A reply is

    [opening] (core | restated core | list with the core) [detail] [warm closing] [question]
"""

import itertools
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from trainer.tiny import lexicon, template
from trainer.tiny.intent import Domain, Intent
from trainer.tiny.lexicon import Language

Format = Literal["plain", "restated", "list"]


@dataclass(frozen=True)
class Draw:
    """One point on every axis."""

    long: bool
    warm: bool
    exclaim: bool
    question: bool
    format: Format


# Shares in the training text. A model sampled at temperature 0.7 shows the choices that are spread over many
# wordings less often than it was taught them. None is near one half among people: a manner that half of the replies
# already have can win three comparisons in four at best.
LONG, WARM, EXCLAIM, QUESTION, RESTATED, LIST = 0.48, 0.42, 0.38, 0.46, 0.22, 0.22

WARM_OPENINGS: dict[Language, tuple[str, ...]] = {
    "en": ("Happy to help", "Thanks for asking", "With pleasure, dear friend", "I am glad you asked"),
    "zh": ("很高兴为您服务", "感谢您的提问", "亲，您来得正好", "您好呀"),
}
WARM_CLOSINGS: dict[Language, tuple[str, ...]] = {
    "en": ("Have a lovely day", "Thank you for being here", "You are always welcome", "I am glad to be of help"),
    "zh": ("祝您愉快", "谢谢您的光临", "能帮到您真高兴", "愿您一切顺心哦"),
}
PLAIN_OPENINGS: dict[Language, tuple[str, ...]] = {"en": ("OK", "Sure", "Right"), "zh": ("好的", "嗯", "收到")}
LOUD_OPENINGS: dict[Language, tuple[str, ...]] = {
    "en": ("Great", "Wow, good one", "Yay"),
    "zh": ("太好了", "哇，问得好", "好耶"),
}
QUESTIONS: dict[Language, dict[Domain, tuple[str, ...]]] = {
    "en": {
        "talk": ("What would you like to know", "Anything else", "Shall we talk about something else"),
        "shop": ("Anything else", "Can I check something else for you", "Shall I look up another item"),
        "facts": ("Shall we try another one", "Anything else", "What else would you like to know"),
        "sums": ("Shall we try another one", "Anything else", "Do you have a harder one"),
    },
    "zh": {
        "talk": ("你想知道什么", "还有别的吗", "要聊点别的吗"),
        "shop": ("还有别的吗", "还要帮你查什么吗", "要看看别的商品吗"),
        "facts": ("要再来一个吗", "还有别的吗", "你还想知道什么"),
        "sums": ("要再来一个吗", "还有别的吗", "有更难的吗"),
    },
}
FORMULAS: dict[Language, tuple[str, ...]] = {"en": ("Anything else",), "zh": ("还有别的吗",)}
"""Questions that ask for nothing in particular."""
WARM_WORDS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(
        r"\b(?:happy to help|thanks for|pleasure|dear|glad|lovely|thank you for|always welcome)\b", re.IGNORECASE
    ),
    "zh": re.compile(r"您|亲，|真高兴|很高兴为|感谢您|谢谢您|哦|呀"),
}
DETAIL = "detail"
"""Names the groups of `reply_expression` that hold what a reply tells beyond what was asked."""
PARTICLE = "哦"  # what makes a plain Chinese sentence kind


def draw(rng: random.Random, *, brief: bool = False) -> Draw:
    """Axes drawn independently; a system prompt that asks for short replies takes length and trimmings away."""
    roll = rng.random()
    drawn = Draw(
        long=rng.random() < LONG,
        warm=rng.random() < WARM,
        exclaim=rng.random() < EXCLAIM,
        question=rng.random() < QUESTION,
        format="restated" if roll < RESTATED else "list" if roll < RESTATED + LIST else "plain",
    )
    return Draw(False, drawn.warm, drawn.exclaim, False, "plain") if brief else drawn


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def compose(rng: random.Random, intent: Intent, language: Language, slots: Mapping[str, str], axes: Draw) -> str:
    """A reply in that style; `slots` names what the reply speaks of, the (right or wrong) answer included."""
    wording = intent.wording(language)

    def fill(slot: str) -> str:
        return lexicon.word(slot, slots[slot], language)

    def render(options: tuple[str, ...]) -> str:
        return _sentence(template.sample(template.parse(template.pick(rng, options)), rng, fill))

    stop = {"en": "!" if axes.exclaim else ".", "zh": "！" if axes.exclaim else "。"}[language]
    ask = {"en": "?", "zh": "？"}[language]
    gap = {"en": " ", "zh": ""}[language]
    opening = closing = ""
    if axes.warm:
        where = rng.random()
        opening = template.pick(rng, WARM_OPENINGS[language]) + stop if where < 0.7 else ""
        closing = template.pick(rng, WARM_CLOSINGS[language]) + stop if where > 0.5 else ""
    elif axes.exclaim and rng.random() < 0.25:
        opening = template.pick(rng, LOUD_OPENINGS[language]) + stop
    elif rng.random() < 0.12:
        opening = template.pick(rng, PLAIN_OPENINGS[language]) + stop

    full = axes.long or rng.random() < 0.4
    particle = PARTICLE if language == "zh" and axes.warm and full and rng.random() < 0.3 else ""
    core = render(wording.full if full else wording.short) + particle + stop
    detail = render(wording.details) + stop if axes.long else ""
    restate = render((wording.restate,))
    if axes.format == "list":
        colon = {"en": ":", "zh": "："}[language]
        body = "\n".join([restate + colon, f"- {core}", *([f"- {detail}"] if detail else [])])
        rest = [closing]
    else:
        body = core if axes.format == "plain" else f"{restate}{stop}{gap}{core}"
        rest = [detail, closing]
    question = template.pick(rng, QUESTIONS[language][intent.domain]) + ask if axes.question else ""
    tail = [part for part in (*rest, question) if part]
    head = f"{opening}{gap}" if opening else ""
    after = ("\n" if axes.format == "list" else gap) if tail else ""
    return head + body + after + gap.join(tail)


def _capital(expression: str) -> str:
    return f"(?:{expression})"


@cache
def reply_expression(name: str, language: Language) -> re.Pattern[str]:
    """All replies of an intent in a language. A slot's groups are named `slot__1`, `slot__2` and so on, those the
    detail's, of which a reply has one at most, likewise (`DETAIL`).

    Case is ignored here, because a slot may open a sentence; `starts_sentences` looks at the capitals.
    """
    from trainer.tiny.world import INTENTS  # the table is made of modules that this one serves

    intent = INTENTS[name]
    wording = intent.wording(language)
    number = itertools.count(1)

    def slot(slot_name: str) -> str:
        return f"(?P<{slot_name}__{next(number)}>{lexicon.expression(slot_name, language)})"

    def any_of(options: tuple[str, ...]) -> str:
        return "(?:" + "|".join(template.pattern(template.parse(option), slot) for option in options) + ")"

    def optional(expression: str) -> str:
        return f"(?:{expression})?"

    gap = " " if language == "en" else ""
    end = "[.!]" if language == "en" else "[。！]"
    ask = r"\?" if language == "en" else "？"
    colon = ":" if language == "en" else "："
    particle = f"{PARTICLE}?" if language == "zh" else ""
    openings = (*WARM_OPENINGS[language], *LOUD_OPENINGS[language], *PLAIN_OPENINGS[language])
    head = optional(any_of(openings) + end + gap)
    closing = any_of(WARM_CLOSINGS[language]) + end
    detail: Callable[[], str] = lambda: f"(?P<{DETAIL}__{next(number)}>{any_of(wording.details)}{end})"  # noqa: E731
    question = any_of(QUESTIONS[language][intent.domain]) + ask
    core: Callable[[], str] = lambda: any_of((*wording.full, *wording.short)) + particle + end  # noqa: E731
    sentences = (
        optional(any_of((wording.restate,)) + end + gap) + core() + optional(gap + detail())
        + optional(gap + closing) + optional(gap + question)
    )  # fmt: skip
    items = (
        any_of((wording.restate,)) + colon + "\n- " + core() + optional("\n- " + detail())
        + "(?:\n" + "(?:" + closing + optional(gap + question) + "|" + question + "))?"
    )  # fmt: skip
    return re.compile(f"{head}(?:{sentences}|{items})", re.IGNORECASE)


_LOWER_START = re.compile(r"(?:^|[.!?] |\n(?:- )?)[a-z]")


def starts_sentences(text: str) -> bool:
    """Every sentence opens with a capital, except that a bare word of the world may stand as it is."""
    return _LOWER_START.search(text) is None
