"""System prompts as versions: named, numbered and never changed; and who gets which, as it was decided last.

Operations and queries. Which version a user gets under a use with several is for the server, which hashes the user.
"""

import re
import secrets
from collections.abc import Sequence

from sqlalchemy.orm import Session
from sqlmodel import col, func, select

from feedback.errors import BadPrompt, UnknownPrompt
from feedback.schema import ApiKey, PromptUse, PromptVersion

NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
RESERVED = "use"
"""No prompt's name: the address of a prompt of that name is the one of who gets which."""
MAX_CHARS = 32_768
MAX_ARMS = 16


def add_prompt(session: Session, *, name: str, text: str, actor: str) -> tuple[PromptVersion, bool]:
    """The version, and whether it is new: the text of a name's newest version makes no other one.

    Raises:
        BadPrompt
    """
    if not re.fullmatch(NAME, name):
        raise BadPrompt(
            f"{name[:80]!r} is no name for a prompt: use up to 64 of a-z, 0-9, _ and -, a letter or digit first"
        )
    if name == RESERVED:
        raise BadPrompt(f"{RESERVED!r} is no name for a prompt: /v1/prompts/{RESERVED} says who gets which")
    if not text.strip() or len(text) > MAX_CHARS or "\x00" in text:
        raise BadPrompt(f"a prompt has 1 to {MAX_CHARS} characters, and not only white space")
    newest = _newest(session, name)
    if newest is not None and newest.text == text:
        return newest, False
    number = newest.number + 1 if newest else 1
    made = PromptVersion(id=f"{name}@{number}", name=name, number=number, text=text, actor=actor)
    session.add(made)
    session.flush()
    return made, True


def prompt_versions(session: Session) -> list[PromptVersion]:
    """By name, oldest first."""
    query = select(PromptVersion).order_by(col(PromptVersion.name), col(PromptVersion.number))
    return list(session.execute(query).scalars())


def find_prompt(session: Session, version: str) -> PromptVersion:
    """By `name@number`, or the newest one of `name`. Raises UnknownPrompt."""
    found = session.get(PromptVersion, version) if "@" in version else _newest(session, version)
    if found is None:
        raise UnknownPrompt(f"there is no prompt {version[:80]!r}")
    return found


def set_use(session: Session, *, arms: Sequence[tuple[str, float]] | None, key_id: str | None, actor: str) -> PromptUse:
    """From now on, users of this key (of none: all others) get these versions, by weight; with no arms, no prompt; with
    None, what all others get.

    The same versions in the same order keep their salt: users stay with their arms as far as the new weights allow.

    Raises:
        UnknownPrompt, BadPrompt
    """
    if key_id is not None and session.get(ApiKey, key_id) is None:
        raise UnknownPrompt(f"there is no key {key_id[:80]!r}")
    if arms is None:
        if key_id is None:
            raise BadPrompt("what all others get is to be said: versions, or none")
        return _used(session, PromptUse(key_id=key_id, arms=None, salt="", actor=actor))
    if len(arms) > MAX_ARMS or any(not 0 < weight < float("inf") for _, weight in arms):
        raise BadPrompt(f"at most {MAX_ARMS} versions, each with a weight above 0")
    versions = [find_prompt(session, version).id for version, _ in arms]
    if len(set(versions)) < len(versions):
        raise BadPrompt("a version stands there twice")
    total = sum(weight for _, weight in arms)
    weighed = [{"version": id, "weight": weight / total} for id, (_, weight) in zip(versions, arms, strict=True)]
    before = next((use for use in uses(session) if use.key_id == key_id), None)
    same = before is not None and [arm["version"] for arm in before.arms or ()] == versions
    salt = before.salt if before is not None and same else secrets.token_hex(8)
    return _used(session, PromptUse(key_id=key_id, arms=weighed, salt=salt, actor=actor))


def _used(session: Session, use: PromptUse) -> PromptUse:
    session.add(use)
    session.flush()
    return use


def uses(session: Session) -> list[PromptUse]:
    """What counts now: for each key that has one, and for all others (None), the newest."""
    newest = select(func.max(col(PromptUse.id))).group_by(col(PromptUse.key_id))
    query = select(PromptUse).where(col(PromptUse.id).in_(newest)).order_by(col(PromptUse.id))
    return [use for use in session.execute(query).scalars() if use.arms is not None]


def texts_in_use(session: Session) -> tuple[list[PromptUse], dict[str, str]]:
    """The uses, and the texts of their versions."""
    found = uses(session)
    wanted = {arm["version"] for use in found for arm in use.arms or ()}
    rows = session.execute(select(PromptVersion.id, PromptVersion.text).where(col(PromptVersion.id).in_(wanted)))
    return found, dict(rows.all())


def _newest(session: Session, name: str) -> PromptVersion | None:
    query = select(PromptVersion).where(PromptVersion.name == name).order_by(col(PromptVersion.number).desc()).limit(1)
    return session.execute(query).scalars().first()
