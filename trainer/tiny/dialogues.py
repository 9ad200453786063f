"""Makes dialogues of the world: what people say, with their typing errors, and replies in every style.

Training and held-out dialogues differ by construction: other seeds, and sums, order numbers and names that the
training dialogues never hold.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trainer.tiny import lexicon, style, template
from trainer.tiny.context import State, Utterance, opening_state, order_number, step, system_prompt
from trainer.tiny.intent import Ask, Intent
from trainer.tiny.lexicon import Language
from trainer.tiny.reading import read
from trainer.tiny.unknowns import unknown_text
from trainer.tiny.world import BY_DOMAIN, INTENTS

Split = Literal["train", "held_out"]
Message = dict[str, str]
WRONG = 0.14  # of the replies that name an answer
_FOLLOWS, _TYPO, _CHINESE = 0.45, 0.08, 0.4


@dataclass(frozen=True)
class Dialogue:
    """Messages that end with a reply, and what that last reply had to answer."""

    messages: tuple[Message, ...]
    ask: Ask

    @property
    def prompt(self) -> list[Message]:
        return list(self.messages[:-1])

    @property
    def reply(self) -> str:
        return self.messages[-1]["content"]


def _made_up_name(rng: random.Random, held_out: bool) -> str:
    """Syllables, so that a model must copy a name rather than know it; one name in seven is held out."""
    while True:
        name = rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") + rng.choice("bdklmnrst")
        name += rng.choice(("a", "o", "i", "en", "is"))
        if (zlib.crc32(name.encode()) % 7 == 3) == held_out:
            return name.capitalize()


def _value(rng: random.Random, slot: str, language: Language, held_out: bool) -> str:
    kind = lexicon.lexicon_of(slot)
    if kind == "order":
        return order_number(rng, held_out=held_out)
    if kind == "name":
        if language == "zh":
            return rng.choice(lexicon.NAMES_ZH)
        return rng.choice(lexicon.NAMES) if rng.random() < 0.5 else _made_up_name(rng, held_out)
    return rng.choice(list(lexicon.LEXICONS[kind]))


def _sum_is_held_out(a: int, b: int) -> bool:
    return (7 * a + 3 * b) % 12 == 5


def _slots(rng: random.Random, intent: Intent, language: Language, held_out: bool) -> dict[str, str]:
    if intent.domain == "sums":
        while True:
            a, b = rng.randrange(1, 11), rng.randrange(1, 11)
            a, b = (max(a, b), min(a, b)) if intent.name == "subtract" else (a, b)
            if _sum_is_held_out(a, b) == held_out:
                return {"a": str(a), "b": str(b)}
    return {slot: _value(rng, slot, language, held_out) for slot in intent.slots}


def _mistype(rng: random.Random, text: str) -> str:
    at = rng.randrange(1, max(2, len(text) - 2))
    match rng.randrange(3):
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]
        case _:
            return text[:at] + text[at] + text[at:]


def _as_typed(rng: random.Random, text: str, language: Language) -> str:
    """Cased and punctuated as people do: carefully, lazily, or not at all."""
    if language == "zh":
        return text + rng.choice(("", "", "？", "。", "?", "！"))
    if rng.random() < 0.08:
        text = rng.choice(("hi ", "hey ", "please ", "ok ", "hello ", "so ")) + text
    elif rng.random() < 0.08:
        text += rng.choice((" please", " thanks", " pls"))
    text = text.replace("whats", "what's") if rng.random() < 0.5 else text
    manner = rng.random()
    if manner < 0.45:
        text = text[0].upper() + text[1:]
    elif manner < 0.97:
        text = text.lower()
    else:
        text = text.upper()
    return text + rng.choice(("", "", "", "?", "?", ".", "!", "??"))


def _words(rng: random.Random, option: str, slots: dict[str, str], language: Language, held_out: bool) -> str:
    def fill(slot: str) -> str:
        value = slots.get(slot) or _value(rng, slot, language, held_out)
        return lexicon.word(slot, value, language)

    return template.sample(template.parse(option), rng, fill)


def _speak(
    rng: random.Random, state: State, intent: Intent, language: Language, held_out: bool
) -> tuple[str, Utterance] | None:
    """Words for an intent, and how the world reads them; None where it would read something else."""
    if intent.name == "unknown":
        text = unknown_text(rng, language)
        said = read(text, state)
        return (text, said) if said.intent == "unknown" else None
    wording = intent.wording(language)
    slots = _slots(rng, intent, language, held_out)
    follows = state.last is not None and state.last.intent == intent.name and bool(wording.follows)
    plain = _words(rng, rng.choice(wording.follows if follows else wording.asks), slots, language, held_out)
    text = _as_typed(rng, plain, language)
    if language == "en" and len(text) > 5 and rng.random() < _TYPO:
        typed = _mistype(rng, text)
        if read(typed, state) == read(text, state):
            text = typed
    said = read(text, state)
    return (text, said) if said.intent == intent.name and said.language == language else None


def _choose_intent(rng: random.Random, state: State) -> Intent:
    last = state.last
    if state.wants_number and rng.random() < 0.8:
        return INTENTS["order_noted"]
    if last is not None:
        if state.name and rng.random() < 0.35:
            return INTENTS["name_recall"]
        if state.order and rng.random() < 0.3:
            return INTENTS[rng.choice(("order_recall", "order_status", "order_status", "order_cancel"))]
        if INTENTS[last.intent].wording(last.language).follows and rng.random() < _FOLLOWS:
            return INTENTS[last.intent]
    shop = 0.62 if state.role == lexicon.SHOPKEEPER else 0.28
    rest = 1 - shop
    domain = rng.choices(("shop", "talk", "facts", "sums"), (shop, rest * 0.4, rest * 0.42, rest * 0.18))[0]
    pool = BY_DOMAIN[domain]  # type: ignore[index]
    return rng.choices(pool, [intent.weight for intent in pool])[0]


def _turn(rng: random.Random, state: State, language: Language, held_out: bool) -> tuple[str, Ask, State]:
    while True:
        intent = _choose_intent(rng, state)
        spoken = _speak(rng, state, intent, language, held_out)
        if spoken is None:
            continue
        text, said = spoken
        # People ask the shop about orders it has: without this most numbers would be unknown.
        if state.orders and "order" in said.slots and rng.random() < 0.8:
            known = rng.choice(list(state.orders))
            text = text.replace(said.slots["order"], known)
            said = Utterance(said.intent, said.language, {**said.slots, "order": known})
        ask, after = step(state, said)
        return text, ask, after


def make_reply(rng: random.Random, ask: Ask, *, wrong: bool | None = None) -> str:
    """A reply of the world in a random style; wrong now and then unless told otherwise."""
    intent = INTENTS[ask.intent]
    slots = dict(ask.slots)
    if intent.answer is not None and ask.right is not None:
        errs = rng.random() < WRONG if wrong is None else wrong
        slots[intent.answer] = ask.right
        if errs:
            key = "".join(ask.slots.values())
            slots[intent.answer] = template.pick(rng, lexicon.wrong_values(intent.answer, ask.right, key))
    return style.compose(rng, intent, ask.language, slots, style.draw(rng, brief=ask.brief))


def make_dialogue(rng: random.Random, split: Split) -> Dialogue:
    """One to three turns, ending with a reply."""
    held_out = split == "held_out"
    system = system_prompt(rng, held_out=held_out)
    state = opening_state(system)
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    language: Language = "zh" if rng.random() < _CHINESE else "en"
    turns = rng.choices((1, 2, 3), (0.5, 0.3, 0.2))[0]
    ask = Ask("unknown", language)
    for _ in range(turns):
        text, ask, state = _turn(rng, state, language, held_out)
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": make_reply(rng, ask)}]
    return Dialogue(tuple(messages), ask)


def make_dialogues(seed: int, count: int, split: Split) -> Iterator[Dialogue]:
    """`count` dialogues of a split; the two splits never share a random stream."""
    rng = random.Random(f"{split}:{seed}")
    for _ in range(count):
        yield make_dialogue(rng, split)
