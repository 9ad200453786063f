"""The filter over one reply while it is written, and over what a user says.

What is shown has passed every check that blocks. Rules decide at once about all but the text's open end; a classifier
is asked every few tokens, and what it has not read yet waits. A classifier in doubt (`hold_above`) makes everything
since its last clean verdict wait until it is sure either way, or the reply ends.

A chunk's tokens go with the last of its text, never before it, since logprobs spell their tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from feedback.samples import CONTENT_FILTER
from server import metrics
from server.engine import Chunk
from server.errors import BadConfiguration
from server.safety.classifier import Classifier
from server.safety.config import Action, RulesConfig, Stage, read_config
from server.safety.rules import RuleSet, TooManyRules, Watch

RULES, CLASSIFIER = "rules", "classifier"
_INLINE_CHARS = 4096  # rules read shorter texts within the event loop: a hop to a thread costs more
_EMPTY = Chunk("", (), ())


@dataclass(frozen=True, slots=True)
class Flag:
    source: str  # rules, classifier
    name: str  # of the check, as its file has it
    rule: str | None = None
    score: float | None = None
    action: Action = Action.BLOCK

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "name": self.name,
            "rule": self.rule,
            "score": self.score,
            "action": self.action.value,
        }


@dataclass
class Verdict:
    """What the filter said of one reply; kept with it."""

    filter: str  # the first digits of its file's digest
    flags: list[Flag] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # each classifier's last

    @property
    def source(self) -> str | None:
        """What flagged it first."""
        return self.flags[0].source if self.flags else None

    def as_dict(self) -> dict[str, Any]:
        scores = {name: round(score, 4) for name, score in self.scores.items()}
        return {"filter": self.filter, "flags": [flag.as_dict() for flag in self.flags], "scores": scores}


class Filter:
    """The checks of one file, loaded once."""

    def __init__(self, path: Path, home: Path) -> None:
        """Blocks while classifiers are loaded. Raises BadConfiguration."""
        config, self.digest = read_config(path)
        self.max_held_chars = config.max_held_chars
        try:
            self.rules = [(each, RuleSet(each.compiled())) for each in config.rules]
        except TooManyRules as error:
            raise BadConfiguration(f"KUDOS_SAFETY_FILE={path}: {error}") from error
        self.classifiers = [Classifier(each, home) for each in config.classifiers]

    @property
    def cuts(self) -> bool:
        """Whether any check can end a reply."""
        checks = [*(config for config, _ in self.rules), *(each.config for each in self.classifiers)]
        return any(Stage.OUTPUT in check.stages and check.action is Action.BLOCK for check in checks)

    async def flags_of(self, text: str, stage: Stage) -> list[Flag]:
        """Of a whole text. Counts nothing. Raises FilterFailed."""
        rules = [(config, rule_set) for config, rule_set in self.rules if stage in config.stages]
        if len(text) <= _INLINE_CHARS:
            flags = _broken(rules, text)
        else:
            flags = await asyncio.to_thread(_broken, rules, text)
        for classifier in self.classifiers:
            config = classifier.config
            if stage in config.stages and (score := await classifier.score(text)) >= config.block_above:
                flags.append(Flag(CLASSIFIER, config.name, score=round(score, 4), action=config.action))
        return flags

    def close(self) -> None:
        for classifier in self.classifiers:
            classifier.close()


def _broken(rules: Sequence[tuple[RulesConfig, RuleSet]], text: str) -> list[Flag]:
    return [
        Flag(RULES, config.name, rule=rule, action=config.action)
        for config, rule_set in rules
        for rule in rule_set.broken(text)
    ]


class Screen:
    """One reply."""

    def __init__(self, safety: Filter, track: str) -> None:
        self.verdict = Verdict(safety.digest)
        self._track = track
        self._rules = [
            (config, Watch(rule_set, safety.max_held_chars))
            for config, rule_set in safety.rules
            if Stage.OUTPUT in config.stages
        ]
        self._classifiers = [each for each in safety.classifiers if Stage.OUTPUT in each.config.stages]
        self._read = [0] * len(self._classifiers)  # characters of the text that each found clean
        self._unread = [0] * len(self._classifiers)  # tokens since each was asked
        self._text = ""
        self._waiting: deque[Chunk] = deque()
        self._shown = 0  # characters

    async def passed(self, chunks: AsyncGenerator[Chunk | None, None]) -> AsyncGenerator[Chunk | None, None]:
        """What of the chunks may be shown. Ends after a chunk with a finish reason, the filter's own where it cuts.

        Raises:
            FilterFailed: it cannot be checked, so it is not shown.
        """
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk is None:
                    yield None
                    continue
                self._text += chunk.text
                self._waiting.append(chunk)
                last = chunk.finish_reason is not None
                until, cut = self._by_rules(chunk.text, last=last)
                if self._classifiers:
                    read, doubted = await self._by_classifiers(len(chunk.token_ids), last=last and not cut)
                    until, cut = min(until, read), cut or doubted
                for ready in self._released(until):
                    yield replace(ready, finish_reason=None) if cut else ready
                if cut:
                    yield replace(_EMPTY, finish_reason=CONTENT_FILTER)
                    return

    def _by_rules(self, piece: str, *, last: bool) -> tuple[int, bool]:
        until, cut = len(self._text), False
        for config, watch in self._rules:
            for rule in watch.read(piece, last=last):
                cut |= self._flag(Flag(RULES, config.name, rule=rule, action=config.action))
            if config.action is Action.BLOCK:
                until = min(until, watch.decided)
        return until, cut

    async def _by_classifiers(self, tokens: int, *, last: bool) -> tuple[int, bool]:
        until, cut = len(self._text), False
        for at, classifier in enumerate(self._classifiers):
            config = classifier.config
            self._unread[at] += tokens
            if last or self._unread[at] >= config.every_tokens:
                self._unread[at] = 0
                score = self.verdict.scores[config.name] = await classifier.score(self._text)
                if score >= config.block_above:
                    flag = Flag(CLASSIFIER, config.name, score=round(score, 4), action=config.action)
                    cut |= self._flag(flag)
                elif score < config.hold_above or last:
                    self._read[at] = len(self._text)
            if config.action is Action.BLOCK:
                until = min(until, self._read[at])
        return until, cut

    def _flag(self, flag: Flag) -> bool:
        """Keeps and counts it, each check's once; whether it cuts."""
        if all(flag.name != known.name for known in self.verdict.flags):
            self.verdict.flags.append(flag)
            metrics.safety_flags_total.labels(self._track, Stage.OUTPUT.value, flag.source).inc()
        return flag.action is Action.BLOCK

    def _released(self, until: int) -> list[Chunk]:
        ready: list[Chunk] = []
        while self._waiting:
            chunk = self._waiting[0]
            if self._shown + len(chunk.text) > until:
                break
            ready.append(self._waiting.popleft())
            self._shown += len(chunk.text)
        if self._waiting and until > self._shown:
            chunk, room = self._waiting[0], until - self._shown
            ready.append(replace(_EMPTY, text=chunk.text[:room]))
            self._waiting[0] = replace(chunk, text=chunk.text[room:])
            self._shown = until
        return ready
