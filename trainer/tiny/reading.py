"""What a user's words ask for: the world's templates read backwards, forgiving case, punctuation and one typing
error per word. What no template reads is `unknown`. Not a language model: it only knows what the world can say.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache

from trainer.tiny import lexicon, template
from trainer.tiny.context import State, Utterance, opening_state, step
from trainer.tiny.intent import Ask
from trainer.tiny.lexicon import Language
from trainer.tiny.world import INTENTS

_HAN = re.compile(r"[\u4e00-\u9fff]")
_CHINESE_WORDS_IN_ENGLISH = re.compile("|".join(map(re.escape, lexicon.WORDS.values())))


def language_of(text: str, fallback: Language) -> Language:
    """Chinese if Chinese characters outweigh the Latin letters, `fallback` if there are neither."""
    han, latin = len(_HAN.findall(text)), len(re.findall(r"[A-Za-z]+", text))
    return fallback if han == latin == 0 else "zh" if han > latin else "en"


def normalise(text: str, language: Language) -> str:
    """Lower case, no punctuation, single spaces; none at all in Chinese, except between Latin words."""
    text = text.lower().replace("'", "").replace("’", "").replace("×", "*").replace("＋", "+")
    text = re.sub(r"[^\w+\-*\u4e00-\u9fff]+|_", " ", text)
    text = re.sub(r"\s*([+\-*])\s*", r"\1", text)
    if language == "zh":
        text = re.sub(r"(?<=[^a-z])\s+|\s+(?=[^a-z])", "", text)
    return " ".join(text.split()).strip("-+*")


def _expression(options: Sequence[str], language: Language) -> re.Pattern[str]:
    number = itertools.count(1)

    def slot(name: str) -> str:
        return f"(?P<{name}__{next(number)}>{lexicon.expression(name, language).lower()})"

    def literal(text: str) -> str:
        kept = re.sub(r"\s*([+\-*])\s*", r"\1", text.lower().replace("'", ""))
        return re.escape(kept).replace(r"\ ", " ").replace(" ", " ?")

    # \d and \u would be harmed by lower(): the slot expressions hold \d, \- and ranges only, which lower() keeps.
    body = "|".join(template.pattern(template.parse(option), slot, literal) for option in options)
    if language == "en":
        return re.compile(
            rf"(?:(?:hi|hello|hey|ok|so|well|please|sorry|excuse me|um|and) )*(?:{body})"
            r"(?: (?:please|thanks|thank you|now|pls))?"
        )
    return re.compile(rf"(?:你好|请问|那个|嗯|麻烦|请)*(?:{body})(?:谢谢|啊|呀)?")


@cache
def _expressions(language: Language) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (intent.name, _expression(intent.wording(language).asks, language))
        for intent in INTENTS.values()
        if intent.wording(language).asks
    )


@cache
def _follow_expression(name: str, language: Language) -> re.Pattern[str] | None:
    follows = INTENTS[name].wording(language).follows
    return _expression(follows, language) if follows else None


def _slots(found: re.Match[str], language: Language) -> dict[str, str]:
    return {
        group.split("__")[0]: lexicon.value_of(group.split("__")[0], text, language)
        for group, text in found.groupdict().items()
        if text is not None
    }


def _plain_read(text: str, language: Language, last: Utterance | None) -> Utterance | None:
    if last is not None and (expression := _follow_expression(last.intent, language)):
        found = expression.fullmatch(text)
        if found:
            return Utterance(last.intent, language, {**last.slots, **_slots(found, language)})
    for name, expression in _expressions(language):
        found = expression.fullmatch(text)
        if found:
            return Utterance(name, language, _slots(found, language))
    return None


def words_of(node: template.Node) -> Iterator[str]:
    match node:
        case template.Literal(text):
            yield from re.findall(r"[a-z]+", text.lower().replace("'", ""))
        case template.Slot():
            return
        case template.Choice(parts) | template.Joined(parts):
            for part in parts:
                yield from words_of(part)


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    asks = (
        ask for intent in INTENTS.values() for ask in (*intent.en.asks, *intent.en.follows)
    )  # fmt: skip
    words = {word for ask in asks for word in words_of(template.parse(ask))}
    for kind, entries in lexicon.LEXICONS.items():
        if kind not in ("role", "stock"):
            words.update(word for entry in entries for word in re.findall(r"[a-z]+", entry.lower()))
    return frozenset(words)


def _edits(word: str) -> Iterator[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        if i + 1 < len(word):
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        for letter in letters:
            yield word[:i] + letter + word[i + 1 :]
    for i, letter in itertools.product(range(len(word) + 1), letters):
        yield word[:i] + letter + word[i:]


@lru_cache(maxsize=20_000)
def _mended(word: str) -> str:
    known = _vocabulary()
    if len(word) < 4 or word in known or not word.isascii() or not word.isalpha():
        return word
    return min((edit for edit in _edits(word) if edit in known and len(edit) > 2), default=word)


def read(text: str, state: State) -> Utterance:
    """The utterance in these words, in the light of what was said before."""
    language = language_of(text, state.language)
    plain = normalise(text, language)
    if len(plain) > 120:  # nobody asks the world something this long
        return Utterance("unknown", language)
    said = _plain_read(plain, language, state.last)
    if said is None and language == "en":
        mended = " ".join(_mended(word) for word in plain.split())
        said = _plain_read(mended, language, state.last) if mended != plain else None
    if said is None and language == "zh" and _CHINESE_WORDS_IN_ENGLISH.search(plain) and re.search("[a-z]", plain):
        said = _plain_read(normalise(text, "en"), "en", state.last)
    return said or Utterance("unknown", language)


def understand(messages: Sequence[Mapping[str, str]]) -> Ask:
    """What the last user message asks for. Only system and user messages count: the assistant may have erred."""
    system = next((m["content"] for m in messages if m["role"] == "system"), None)
    state = opening_state(system)
    ask: Ask | None = None
    for message in messages:
        if message["role"] == "user":
            ask, state = step(state, read(message["content"], state))
    if ask is None:
        raise ValueError("there is no user message to understand")
    return ask
