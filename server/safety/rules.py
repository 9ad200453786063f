"""Rules: words, patterns and topics that an operator writes down, searched for in linear time by RE2.

Words of letters match whole and in any case; what has other scripts' characters in it, as Chinese has, matches
anywhere, since there is no space between its words. A `Watch` follows one text that grows: it finds what is
complete, and says from where on the text could still become something that is not to be shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from server.safety.patterns import WORD, Pattern, pattern, phrase

_SPACED = re.compile(r"[\w'-]+(?: +[\w'-]+)*", re.ASCII)
_ANY, _NOT_WORD = r"(?s:.)", f"[^{WORD}]"
_START = b"\0"  # stands before a text, so that in every search some character stands before a match
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_MAX_MEMORY = 64 << 20  # bytes that RE2 may use for the automaton of one expression


class TooManyRules(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class Rule:
    name: str  # as it stands in verdicts: `word ...`, `pattern ...`, `topic ...`
    pattern: Pattern
    whole_words: bool  # no letter or digit stands right before or after


def rules_of(
    words: Iterable[str], patterns: Iterable[str], topics: Iterable[tuple[str, Sequence[str]]]
) -> tuple[Rule, ...]:
    """Raises BadPattern."""
    return (
        *(_word(f"word {word}", word) for word in words),
        *(Rule(f"pattern {source}", pattern(source), False) for source in patterns),
        *(_word(f"topic {topic}", word) for topic, its_words in topics for word in its_words),
    )


def _word(name: str, word: str) -> Rule:
    return Rule(name, phrase(word), _SPACED.fullmatch(word.strip()) is not None)


class RuleSet:
    """Compiled once, used by every reply; thread-safe."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Raises TooManyRules where RE2 has no room for them."""
        self._rules = rules
        # A match counts once something follows it, which then cannot undo it any more; at a text's end nothing need.
        self._alone = [_compile(_closed([rule], last=True)) for rule in rules]
        self._closed, self._at_end = _compile(_closed(rules, last=False)), _compile(_closed(rules, last=True))
        self._open = _compile(_open(rules))
        # Asked of every token. Without groups RE2 need not look where they are.
        self._any = _compile(re.sub(r"(?<!\\)\((?!\?)", "(?:", f"{_closed(rules, last=False)}|{_open(rules)}"))

    def broken(self, text: str) -> list[str]:
        """The rules that a whole text breaks, by name."""
        return self.broken_in(_START + _encoded(text))

    def broken_in(self, window: bytes) -> list[str]:
        if self._at_end.search(window) is None:
            return []
        found = (rule.name for rule, alone in zip(self._rules, self._alone, strict=True) if alone.search(window))
        return list(dict.fromkeys(found))

    def look(self, window: bytes, *, last: bool) -> tuple[bool, int]:
        """Whether there is a match in the window behind its first character, and where in it the match begins, or else
        where begins what could still become one. In bytes."""
        if last:
            found = _start(self._at_end.search(window))
            return (False, len(window)) if found is None else (True, found)
        if self._any.search(window) is None:  # nearly always
            return False, len(window)
        found = _start(self._closed.search(window))
        if found is not None:
            return True, found
        begun = _start(self._open.search(window))
        return False, len(window) if begun is None else begun


class Watch:
    """One text that grows. Keeps what is open, and the character before it."""

    def __init__(self, rules: RuleSet, max_held_chars: int) -> None:
        self._rules = rules
        self._max_held_chars = max_held_chars
        self._window = _START
        self._read = 0  # characters
        self.decided = 0  # of them: what is not forbidden, and cannot become so

    def read(self, piece: str, *, last: bool = False) -> list[str]:
        """The rules that are broken now, by name; `decided` is then where the match begins."""
        window = self._window + _encoded(piece)
        self._read += len(piece)
        found, start = self._rules.look(window, last=last)
        held = window[start:].decode()
        if found:
            self.decided = self._read - len(held)
            return self._rules.broken_in(window)
        if len(held) > self._max_held_chars:  # a pattern without an end: what is too long ago is let go
            let_go, held = held[: -self._max_held_chars], held[-self._max_held_chars :]
            start += len(let_go.encode())
        self.decided = self._read - len(held)
        self._window = window[_before(window, start) :]
        return []


def _before(window: bytes, start: int) -> int:
    """Where the character before `start` begins; no further back than the window."""
    start -= 1
    while start > 0 and window[start] & 0xC0 == 0x80:
        start -= 1
    return max(start, 0)


def _closed(rules: Sequence[Rule], *, last: bool) -> str:
    """What stands before a match is in it too, as RE2 cannot look behind; the match proper is the group."""
    words = "|".join(rule.pattern.whole for rule in rules if rule.whole_words)
    others = "|".join(rule.pattern.whole for rule in rules if not rule.whole_words)
    return _either(
        f"{_NOT_WORD}((?:{words})(?:{_NOT_WORD}{'|$' if last else ''}))" if words else "",
        f"{_ANY}((?:{others}){'' if last else _ANY})" if others else "",
    )


def _open(rules: Sequence[Rule]) -> str:
    words = "|".join(rule.pattern.beginning for rule in rules if rule.whole_words)
    others = "|".join(rule.pattern.beginning for rule in rules if not rule.whole_words)
    return _either(f"{_NOT_WORD}((?:{words})$)" if words else "", f"{_ANY}((?:{others})$)" if others else "")


def _either(*alternatives: str) -> str:
    return "|".join(each for each in alternatives if each)


def _compile(source: str) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    try:
        return re2.compile(source, options)
    except re2.error as error:
        raise TooManyRules(f"RE2 does not take the rules together: {error}") from error


def _start(match: Any) -> int | None:
    if match is None:
        return None
    return next(
        int(start) for start, _ in (match.span(group) for group in range(1, len(match.groups()) + 1)) if start >= 0
    )


def _encoded(text: str) -> bytes:
    return text.encode() if text.isascii() else text.translate(_FULL_WIDTH).encode("utf-8", "replace")
