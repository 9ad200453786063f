"""What can be seen of a reply without understanding it: how long, in which language, in which form."""

from __future__ import annotations

import math
import re

HAN = re.compile(r"[\u4e00-\u9fff]")
LIST = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)、])")
WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")
LENGTH, LANGUAGE, FORMAT = "twice as long", "in Chinese", "has a list"


def words_of(text: str) -> list[str]:
    """In lower case; each Chinese character is a word."""
    return WORD.findall(text.lower())


def surfaces(text: str, tokens: int) -> dict[str, float]:
    return {
        LENGTH: math.log2(max(tokens, 1)),
        LANGUAGE: float(len(HAN.findall(text)) > 0.2 * len(text)),
        "asks a question": float("?" in text or "？" in text),
        "exclaims": float("!" in text or "！" in text),
        FORMAT: float(LIST.search(text) is not None),
    }
