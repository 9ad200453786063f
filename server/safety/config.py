"""The filter's file: which rules and classifiers there are, what each looks at, and what follows. TOML.

[[rules]]
name = "house"
words = ["attack", "炸弹"]
patterns = ['\\b\\d{13,16}\\b']
topics.weapons = ["rifle", "grenade"]

[[classifiers]]
name = "harm"
model = "harm-0a1b2c3d"
label = "harmful"
"""

from __future__ import annotations

import hashlib
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import BadConfiguration
from server.safety.patterns import BadPattern
from server.safety.rules import Rule, rules_of


class Stage(StrEnum):
    INPUT = "input"  # what the user says
    OUTPUT = "output"  # what the model replies


class Action(StrEnum):
    BLOCK = "block"  # refuse the request, or cut the reply
    FLAG = "flag"  # count it and keep it with the reply; nobody notices


class _Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    stages: tuple[Stage, ...] = (Stage.INPUT, Stage.OUTPUT)
    action: Action = Action.BLOCK


class RulesConfig(_Check):
    words: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    topics: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _says_something(self) -> RulesConfig:
        everything = [*self.words, *(word for words in self.topics.values() for word in words)]
        if any(not word.strip() for word in everything) or not all(self.topics.values()):
            raise ValueError("a word is blank, or a topic has none: it would be found everywhere, or nowhere")
        if not (everything or self.patterns):
            raise ValueError("there are no words, patterns or topics in it")
        try:
            self.compiled()
        except BadPattern as error:
            raise ValueError(str(error)) from None
        return self

    def compiled(self) -> tuple[Rule, ...]:
        return rules_of(self.words, self.patterns, self.topics.items())


class ClassifierConfig(_Check):
    model: str  # a version below KUDOS_HOME/safety, a folder, or a name on a model hub
    label: str  # of the model's labels, the one that is not let through
    block_above: Annotated[float, Field(gt=0, lt=1)] = 0.9
    hold_above: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of a reply: not shown while it is as doubtful as this
    every_tokens: Annotated[int, Field(ge=1, le=512)] = 8  # of a reply: asked again after so many
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = 256  # it reads the last so many of a longer text

    @model_validator(mode="after")
    def _in_order(self) -> ClassifierConfig:
        if self.hold_above > self.block_above:
            raise ValueError(f"hold_above ({self.hold_above}) must not be more than block_above ({self.block_above})")
        return self


class FilterConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[RulesConfig, ...] = ()
    classifiers: tuple[ClassifierConfig, ...] = ()
    max_held_chars: Annotated[int, Field(ge=1, le=100_000)] = 256
    """The most of a reply that waits for a rule to be decided; only a pattern without an end comes near it."""

    @model_validator(mode="after")
    def _whole(self) -> FilterConfig:
        names = [check.name for check in (*self.rules, *self.classifiers)]
        if not names:
            raise ValueError("there are neither rules nor classifiers in it")
        if len(set(names)) < len(names):
            raise ValueError("two checks have one name")
        return self


def read_config(path: Path) -> tuple[FilterConfig, str]:
    """The configuration, and the first 8 digits of its SHA-256. Raises BadConfiguration, which names the mend."""
    setting = f"KUDOS_SAFETY_FILE={path}"
    try:
        data = path.read_bytes()
        config = FilterConfig.model_validate(tomllib.loads(data.decode()))
    except OSError as error:
        raise BadConfiguration(f"{setting}: it cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{setting}: it is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadConfiguration(f"{setting}: {where}: {first['msg']}") from None
    return config, hashlib.sha256(data).hexdigest()[:8]
