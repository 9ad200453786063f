"""A regular expression for RE2, and one for everything that its matches can begin with.

The second is how little has to be held back while a text is still being written: what stands at its end is shown
unless a match could begin there. RE2 searches in linear time whatever an operator writes, and has therefore no
look-around and no back references. Patterns are read by Python's own parser, so that both expressions say the same.
Case never matters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

_parser: Any = import_module("re._parser")

WORD = r"\pL\pN\pM_"
_CLASSES = {
    "CATEGORY_DIGIT": r"\p{Nd}",
    "CATEGORY_NOT_DIGIT": r"\P{Nd}",
    "CATEGORY_WORD": WORD,
    "CATEGORY_SPACE": r"\s\x{85}\x{a0}\x{2028}\x{2029}\x{3000}",
}
_NEGATED = {"CATEGORY_NOT_WORD": "CATEGORY_WORD", "CATEGORY_NOT_SPACE": "CATEGORY_SPACE"}
_BOUNDARIES = {"AT_BOUNDARY": r"\b", "AT_NON_BOUNDARY": r"\B"}
_NOT_TAKEN = {
    "ASSERT": "look-ahead and look-behind",
    "ASSERT_NOT": "look-ahead and look-behind",
    "GROUPREF": "back references",
    "GROUPREF_EXISTS": "conditions",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
}


class BadPattern(ValueError):
    """The message says what is not taken, and is meant for who wrote the pattern."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Sources for RE2."""

    whole: str
    beginning: str  # whatever a match can begin with: not nothing, and all of it included


def pattern(source: str) -> Pattern:
    """Raises BadPattern for what is no regular expression, what RE2 cannot search for, and what matches nothing."""
    try:
        parsed = _parser.parse(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadPattern(f"{source!r} is no regular expression: {error}") from error
    if parsed.state.flags & ~(re.UNICODE | re.IGNORECASE).value:
        raise BadPattern(f"{source!r}: flags are not taken; case never matters")
    if parsed.getwidth()[0] == 0:
        raise BadPattern(f"{source!r} matches an empty text, and would be found everywhere")
    try:
        return Pattern(_whole(list(parsed)), _beginning(list(parsed)))
    except BadPattern as error:
        raise BadPattern(f"{source!r}: {error}") from None


def phrase(words: str) -> Pattern:
    """The words as they stand; any white space between them."""
    return pattern(r"\s+".join(map(re.escape, words.split())))


def _whole(items: Sequence[tuple[Any, Any]]) -> str:
    return "".join(_item(*item) for item in items)


def _beginning(items: Sequence[tuple[Any, Any]]) -> str:
    """Of a sequence: a beginning of its first item, or that item and a beginning of the rest."""
    if not items:
        return ""
    item, begun, rest = _item(*items[0]), _begun(*items[0]), _beginning(items[1:])
    if not rest:
        return begun
    if begun == item:
        return f"{item}(?:{rest})?"
    return f"(?:{begun}|{item}{rest})" if begun else f"{item}{rest}"


def _item(operator: Any, argument: Any) -> str:
    match str(operator):
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            return _character(str(operator), argument)
        case "AT":
            return _boundary(argument)
        case "BRANCH":
            return f"(?:{'|'.join(_whole(list(branch)) for branch in argument[1])})"
        case "SUBPATTERN":
            return f"(?:{_whole(_group(argument))})"
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, body = argument
            return f"(?:{_whole(list(body))}){_times(least, most)}"
    raise BadPattern(f"{_NOT_TAKEN.get(str(operator), str(operator).lower())} cannot be searched for in linear time")


def _begun(operator: Any, argument: Any) -> str:
    """What one item can begin with; empty for what has no width."""
    match str(operator):
        case "AT":
            return ""
        case "BRANCH":
            found = [begun for branch in argument[1] if (begun := _beginning(list(branch)))]
            return f"(?:{'|'.join(found)})" if found else ""
        case "SUBPATTERN":
            return _beginning(_group(argument))
        case "MAX_REPEAT" | "MIN_REPEAT":
            _, most, body = argument
            begun = _beginning(list(body)) if most else ""
            fewer = _times(0, most if most == _parser.MAXREPEAT else most - 1)
            return begun and f"(?:{_whole(list(body))}){fewer}{begun}"
    return _item(operator, argument)


def _group(argument: Any) -> list[tuple[Any, Any]]:
    _, added, removed, body = argument
    if (added | removed) & ~re.IGNORECASE.value:
        raise BadPattern("flags are not taken; case never matters")
    return list(body)


def _times(least: Any, most: Any) -> str:
    if most == _parser.MAXREPEAT:
        return f"{{{least},}}"
    return f"{{{least},{most}}}"


def _boundary(where: Any) -> str:
    if str(where) in _BOUNDARIES:
        return _BOUNDARIES[str(where)]
    raise BadPattern(r"^, $, \A and \Z are not taken, as a text is searched while it is written; \b is")


def _character(operator: str, argument: Any) -> str:
    if operator == "ANY":
        return "."
    if operator == "IN":
        return _set(argument)
    return _literal(argument) if operator == "LITERAL" else f"[^{_literal(argument)}]"


def _literal(code: int) -> str:
    return f"\\x{{{code:x}}}"


def _set(members: Sequence[tuple[Any, Any]]) -> str:
    """A class of characters; one that has the opposite of several is spelled as alternatives."""
    negated, inside, beside = False, "", []
    for operator, argument in members:
        match str(operator):
            case "NEGATE":
                negated = True
            case "LITERAL":
                inside += _literal(argument)
            case "RANGE":
                inside += f"{_literal(argument[0])}-{_literal(argument[1])}"
            case "CATEGORY" if str(argument) in _CLASSES:
                inside += _CLASSES[str(argument)]
            case "CATEGORY":
                beside.append(f"[^{_CLASSES[_NEGATED[str(argument)]]}]")
    if negated and beside:
        raise BadPattern(r"\W and \S inside [^...] are not taken: name what is meant")
    if inside:
        beside.append(f"[{'^' if negated else ''}{inside}]")
    return beside[0] if len(beside) == 1 else f"(?:{'|'.join(beside)})"
