"""The whole world in one table: every intent by name."""

from trainer.tiny.intent import Domain, Intent
from trainer.tiny.world_facts import FACTS
from trainer.tiny.world_shop import SHOP
from trainer.tiny.world_talk import TALK

INTENTS: dict[str, Intent] = {intent.name: intent for intent in (*TALK, *SHOP, *FACTS)}
BY_DOMAIN: dict[Domain, tuple[Intent, ...]] = {
    domain: tuple(intent for intent in INTENTS.values() if intent.domain == domain and intent.weight > 0)
    for domain in ("talk", "shop", "facts", "sums")
}
