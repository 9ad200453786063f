"""What a conversation has established so far, and what an utterance asks for in the light of it. Pure.

Both the maker of dialogues and the judge go through `step`, so that they agree on what a turn is about.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from trainer.tiny import lexicon
from trainer.tiny.intent import Ask
from trainer.tiny.lexicon import Language
from trainer.tiny.world import INTENTS


@dataclass(frozen=True)
class Utterance:
    """What a user said: an intent's ask, its language, and the slots that were named."""

    intent: str
    language: Language
    slots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    role: str = lexicon.ASSISTANT
    shop: str = "Kudos Corner"
    orders: Mapping[str, str] = field(default_factory=dict)  # order number: status
    forced: Language | None = None  # the system prompt wants every reply in this language
    brief: bool = False
    language: Language = "en"  # of the last utterance
    name: str | None = None
    order: str | None = None
    last: Utterance | None = None
    wants_number: bool = False


def step(state: State, said: Utterance) -> tuple[Ask, State]:
    """What has to be answered now, and the state afterwards."""
    language = state.forced or said.language
    intent = INTENTS[said.intent]
    after = replace(state, language=said.language, last=said, wants_number=False)
    name, slots = said.intent, dict(said.slots)
    right = intent.right(slots) if intent.right else None

    if intent.domain == "shop" and state.role == lexicon.TEACHER:
        return Ask("shop_elsewhere", language, brief=state.brief), after
    match said.intent:
        case "name_tell":
            after = replace(after, name=slots["name"])
        case "name_recall":
            name, right = ("name_recall", state.name) if state.name else ("name_missing", None)
        case "who_are_you":
            right = state.role
        case "which_shop":
            right = state.shop
        case "order_recall":
            name, right = ("order_recall", state.order) if state.order else ("order_need_number", None)
        case "order_noted":
            after = replace(after, order=slots["order"])
            if state.wants_number:
                name, slots, right = _status(state, slots["order"])
        case "order_status" | "order_cancel":
            order = slots.get("order") or state.order
            after = replace(after, order=order, wants_number=order is None)
            if order is None:
                name, slots = "order_need_number", {}
            elif said.intent == "order_status":
                name, slots, right = _status(state, order)
            else:
                slots = {"order": order}
    kept = {slot: value for slot, value in slots.items() if slot in INTENTS[name].slots}
    return Ask(name, language, kept, right, state.brief), after


def _status(state: State, order: str) -> tuple[str, dict[str, str], str | None]:
    status = state.orders.get(order)
    return ("order_status", {"order": order}, status) if status else ("order_missing", {"order": order}, None)


_NEUTRAL = (
    "You are a helpful assistant.",
    "You are kudos-tiny.",
    "Be helpful and honest.",
    "你是一个有用的助手。",
    "Answer the user.",
)
_SHOP_EN = ("You are the assistant of the shop {}.", "You work for the shop {}.", "You answer for the shop {}.")
_SHOP_ZH = ("你是商店{}的客服。", "你在商店{}工作。")
_TEACHER = ("You are a teacher.", "You are a patient teacher.", "你是一位老师。")
_FORCED: dict[Language, tuple[str, ...]] = {
    "en": ("Answer in English.", "Always answer in English.", "请用英文回答。"),
    "zh": ("Answer in Chinese.", "Always answer in Chinese.", "请用中文回答。"),
}
_BRIEF = ("Be brief.", "Keep it short.", "请简短回答。")


def order_number(rng: random.Random, *, held_out: bool) -> str:
    """Four digits. One number in eleven is held out; every digit is trained on at every place."""
    while True:
        number = rng.randrange(1000, 10_000)
        if (number % 11 == 7) == held_out:
            return str(number)


def system_prompt(rng: random.Random, *, held_out: bool) -> str | None:
    """A system prompt, or None as often as not."""
    kind = rng.choices(("none", "neutral", "shop", "teacher", "bare"), (0.42, 0.1, 0.33, 0.07, 0.08))[0]
    if kind == "none":
        return None
    parts: list[str] = []
    zh = rng.random() < 0.35
    language: Language = "zh" if zh else "en"
    if kind == "neutral":
        parts.append(rng.choice(_NEUTRAL))
    elif kind == "teacher":
        parts.append(rng.choice(_TEACHER))
    elif kind == "shop":
        shop = rng.choice(list(lexicon.SHOPS))
        parts.append(rng.choice(_SHOP_ZH if zh else _SHOP_EN).format(lexicon.word("shop", shop, language)))
        for _ in range(rng.choice((0, 1, 1, 2))):
            order = order_number(rng, held_out=held_out)
            status = lexicon.word("status", rng.choice(list(lexicon.STATUSES)), language)
            parts.append(f"订单{order}：{status}。" if zh else f"Order {order}: {status}.")
    if rng.random() < (0.6 if kind == "bare" else 0.1):
        parts.append(rng.choice(_FORCED[rng.choice(("en", "zh"))]))
    if not parts or rng.random() < 0.08:
        parts.append(rng.choice(_BRIEF))
    return ("" if zh and all(part[0] >= "\u4e00" for part in parts) else " ").join(parts)


_ORDER = re.compile(r"(?:order|订单)\s*(\d{4})\s*[:：]\s*([^.。]+)", re.IGNORECASE)
_STATUS_OF = {words: en for en, zh in lexicon.STATUSES.items() for words in (en, zh)}


def opening_state(system: str | None) -> State:
    """What a system prompt says, as far as the world understands it; other words in it change nothing."""
    if system is None:
        return State()
    shop = next((en for en, zh in lexicon.SHOPS.items() if en in system or f"商店{zh}" in system), None)
    lowered = system.lower()
    orders = {
        order: _STATUS_OF[words.strip()] for order, words in _ORDER.findall(system) if words.strip() in _STATUS_OF
    }
    forced: Language | None = None
    if re.search(r"(?:answer|reply)[a-z ]* in chinese|用中文", lowered):
        forced = "zh"
    elif re.search(r"(?:answer|reply)[a-z ]* in english|用英文", lowered):
        forced = "en"
    if shop:
        role = lexicon.SHOPKEEPER
    elif "teacher" in lowered or "老师" in system:
        role = lexicon.TEACHER
    else:
        role = lexicon.ASSISTANT
    brief = bool(re.search(r"be brief|keep it short|简短", lowered))
    return State(role=role, shop=shop or "Kudos Corner", orders=orders, forced=forced, brief=brief)
