"""HH-RLHF (Bai et al. 2022, arXiv:2204.05862): `chosen` and `rejected`, two dialogues alike but for their last reply.

The file does not say who judged what, so the voter is synthetic: one for each opening question, because dialogues that
open alike are often one dialogue at different lengths, and must not be split between training and test.
"""

import hashlib
import json
from collections.abc import Iterator

from feedback.ballots import Ballot
from feedback.judgement import Judgement, Text, digest_of
from feedback.records import Problem, Record

SOURCE = "hh"


def parse_hh(record: Record) -> Judgement | Problem:
    value, number = record.value, record.number
    texts = [value.get(name) for name in ("chosen", "rejected")] if isinstance(value, dict) else []
    match texts:
        case [str() as chosen, str() as rejected]:
            pass
        case _:
            return Problem(number, "not an object with the texts `chosen` and `rejected`")
    try:
        digest = hashlib.sha256(json.dumps([chosen, rejected]).encode()).hexdigest()[:32]
        better, worse = parse_turns(chosen), parse_turns(rejected)
    except ValueError as error:
        return Problem(number, str(error))
    if better[:-1] != worse[:-1]:
        return Problem(number, "the two dialogues differ before their last reply")
    if better[-1] == worse[-1]:
        return Problem(number, "the two replies are the same")
    chosen_is_left = int(digest[-1], 16) % 2 == 0  # the file always has it first
    sides = (better, worse) if chosen_is_left else (worse, better)
    return Judgement(
        number=number,
        source=SOURCE,
        key=digest,
        user_id=f"hh-{digest_of(better[0]['content'])}",
        consent=True,  # they published their judgements for training: the deployment's default does not speak for them
        messages=better[:-1],
        replies=tuple(Text(side[-1]["content"]) for side in sides),
        ballot=Ballot(choice="left" if chosen_is_left else "right"),
    )


_MARKS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


def parse_turns(text: str) -> list[dict[str, str]]:
    """A dialogue marked `\\n\\nHuman:` and `\\n\\nAssistant:` as messages; it starts with a user and ends with a reply.

    Raises:
        ValueError: when it does not, or when a reply that is judged is empty.
    """
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("holds a NUL character or half of a surrogate pair")
    starts = sorted((at, mark) for mark in _MARKS for at in _find_all(text, mark))
    if not starts or text[: starts[0][0]].strip():
        raise ValueError("a dialogue does not start with `\\n\\nHuman:`")
    ends = [at for at, _ in starts[1:]] + [len(text)]
    turns = [
        {"role": _MARKS[mark], "content": text[at + len(mark) : end].strip()}
        for (at, mark), end in zip(starts, ends, strict=True)
    ]
    if turns[0]["role"] != "user":
        raise ValueError("a dialogue does not start with `\\n\\nHuman:`")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError("a dialogue does not end with a reply of the assistant")
    if not turns[-1]["content"]:
        raise ValueError("a last reply is empty")
    return turns


def _find_all(text: str, mark: str) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + len(mark))
