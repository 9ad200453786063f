"""Feedback in and out as files: HH-RLHF's pairs in, TRL's two data formats out.

HH-RLHF (Bai et al. 2022, arXiv:2204.05862) holds one JSON object a line, `chosen` and `rejected`: two dialogues that
share all but their last reply. Each becomes a conversation, two replies, a comparison and a vote. The file does not say
who judged what, so the voter is synthetic: one for each opening question, because dialogues that open alike are often
one dialogue at different lengths, and must not be split between training and test.

Every id, and which side the chosen reply is on, comes from a digest of the line: the same line twice, or the same file
after a crash in the middle, adds nothing. Imported replies have text and no token ids.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import select
from sqlalchemy.orm import Session

from feedback.errors import BadImport
from feedback.ids import prompt_digest
from feedback.samples import CorrectionSample, PairSample, ThumbSample, stream
from feedback.schema import Comparison, Conversation, Reply, ReplyState, TargetKind, User, Vote, now
from feedback.splits import Split
from feedback.statements import columns, insert_ignore_many, insert_many
from feedback.store import Store
from feedback.tombstones import erased_among

HH_SOURCE = "hh"
IMPORTED = "imported"  # the arm and the policy version of replies that no policy of ours wrote
MAX_LINE_BYTES = 4_000_000
_BATCH = 200  # dialogues a transaction: whole ones, and short enough not to keep a running server waiting
_KEPT_PROBLEMS = 100

Progress = Callable[[int, int], None]
"""Called with the bytes of the file that have been read, and all of them."""


@dataclass(frozen=True)
class Dialogue:
    """Two last replies to one prompt."""

    line: int
    digest: str
    messages: list[dict[str, str]]
    chosen: str
    rejected: str

    @property
    def chosen_is_left(self) -> bool:
        return int(self.digest[-1], 16) % 2 == 0


@dataclass(frozen=True)
class Problem:
    line: int
    reason: str


@dataclass
class ImportSummary:
    lines: int = 0
    imported: int = 0
    already_there: int = 0
    skipped: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first hundred

    def add_problem(self, problem: Problem) -> None:
        self.skipped += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def import_hh(session: Session, path: Path, on_progress: Progress | None = None) -> ImportSummary:
    """Imports a file in the session's one transaction: all of its good lines, or none."""
    summary = ImportSummary()
    for batch in _batches(path, summary, on_progress):
        _write(session, batch, summary)
    return summary


def import_hh_file(store: Store, path: Path, on_progress: Progress | None = None) -> ImportSummary:
    """Imports a file in many short transactions, so that a server on the same database goes on answering.

    Stopped in the middle, it leaves whole dialogues; doing it again adds the rest.
    """
    summary = ImportSummary()
    for batch in _batches(path, summary, on_progress):
        with store.write() as session:
            _write(session, batch, summary)
    return summary


def read_hh(path: Path, on_progress: Progress | None = None) -> Iterator[Dialogue | Problem]:
    """The dialogues of a file, and in their place the lines that are not any.

    Raises:
        BadImport: the file cannot be opened or is not what its name says.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as raw, _opened(raw, path) as lines:
            number = 0
            try:
                while line := lines.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(line) > MAX_LINE_BYTES:
                        yield Problem(number, f"longer than {MAX_LINE_BYTES} bytes")
                        while line and not line.endswith(b"\n"):
                            line = lines.readline(MAX_LINE_BYTES)
                    elif line.strip():
                        yield _parse(number, line)
                    if on_progress is not None:
                        on_progress(raw.tell(), total)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                if number == 0:
                    raise BadImport(f"{path.name}: not a gzip file: {error}") from error
                yield Problem(number + 1, f"the compressed file breaks off or is damaged here: {error}")
    except OSError as error:
        raise BadImport(f"{path.name}: {error.strerror or error}") from error


def _opened(raw: BinaryIO, path: Path) -> BinaryIO:
    return gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else io.BufferedReader(raw)  # type: ignore


def _batches(path: Path, summary: ImportSummary, on_progress: Progress | None) -> Iterator[list[Dialogue]]:
    def good() -> Iterator[Dialogue]:
        for found in read_hh(path, on_progress):
            summary.lines += 1
            if isinstance(found, Problem):
                summary.add_problem(found)
            else:
                yield found

    dialogues = good()
    while batch := list(islice(dialogues, _BATCH)):
        yield batch


def _parse(number: int, line: bytes) -> Dialogue | Problem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Problem(number, f"not JSON: {error}")
    texts = [record.get(name) for name in ("chosen", "rejected")] if isinstance(record, dict) else []
    match texts:
        case [str() as chosen, str() as rejected]:
            pass
        case _:
            return Problem(number, "not an object with the texts `chosen` and `rejected`")
    try:
        digest = hashlib.sha256(json.dumps([chosen, rejected]).encode()).hexdigest()[:32]
        left, right = parse_turns(chosen), parse_turns(rejected)
    except ValueError as error:
        return Problem(number, str(error))
    if left[:-1] != right[:-1]:
        return Problem(number, "the two dialogues differ before their last reply")
    if left[-1] == right[-1]:
        return Problem(number, "the two replies are the same")
    return Dialogue(number, digest, left[:-1], left[-1]["content"], right[-1]["content"])


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


def _write(session: Session, batch: list[Dialogue], summary: ImportSummary) -> None:
    by_id = {f"cmp-hh{dialogue.digest}": dialogue for dialogue in batch}
    comparison_id = columns(Comparison).id
    known = set(session.execute(select(comparison_id).where(comparison_id.in_(list(by_id)))).scalars())
    new = [(dialogue, _rows(dialogue)) for name, dialogue in by_id.items() if name not in known]
    summary.already_there += len(batch) - len(new)
    erased = erased_among(session, {row["user"]["id"] for _, row in new})
    for dialogue, row in new:
        if row["user"]["id"] in erased:
            summary.add_problem(Problem(dialogue.line, "its user was erased"))
    rows = [row for _, row in new if row["user"]["id"] not in erased]
    summary.imported += len(rows)
    insert_ignore_many(session, User, [row["user"] for row in rows])
    insert_many(session, Conversation, [row["conversation"] for row in rows])
    insert_many(session, Reply, [reply for row in rows for reply in row["replies"]])
    insert_many(session, Comparison, [row["comparison"] for row in rows])
    insert_many(session, Vote, [row["vote"] for row in rows])


def _rows(dialogue: Dialogue) -> dict[str, Any]:
    at = now()
    opening = hashlib.sha256(dialogue.messages[0]["content"].encode()).hexdigest()[:32]
    user_id, conversation_id = f"hh-{opening}", f"conv-hh{dialogue.digest}"
    comparison_id = f"cmp-hh{dialogue.digest}"
    texts = [dialogue.chosen, dialogue.rejected]
    if not dialogue.chosen_is_left:
        texts.reverse()
    replies = [
        {
            "id": f"chatcmpl-hh{dialogue.digest}-{side}",
            "conversation_id": conversation_id,
            "user_id": user_id,
            "comparison_id": comparison_id,
            "side": side,
            "created_at": at,
            "finished_at": at,
            "state": ReplyState.COMPLETE.value,
            "messages": dialogue.messages,
            "prompt_digest": prompt_digest(dialogue.messages),
            "text": text,
            "sampling": {},
            "policy_version": IMPORTED,
            "arm": IMPORTED,
            "propensity": 0.5,
            "source": HH_SOURCE,
        }
        for side, text in zip(("left", "right"), texts, strict=True)
    ]
    return {
        # They published their judgements for training: the deployment's default does not speak for them.
        "user": {"id": user_id, "created_at": at, "consent": True, "erased_at": None},
        "conversation": {
            "id": conversation_id,
            "user_id": user_id,
            "title": "",
            "created_at": at,
            "updated_at": at,
        },
        "replies": replies,
        "comparison": {
            "id": comparison_id,
            "user_id": user_id,
            "conversation_id": conversation_id,
            "left_reply_id": replies[0]["id"],
            "right_reply_id": replies[1]["id"],
            "propensity": 0.5,
            "created_at": at,
            "source": HH_SOURCE,
        },
        "vote": {
            "target_kind": TargetKind.COMPARISON.value,
            "target_id": comparison_id,
            "user_id": user_id,
            "revision": 1,
            "withdrawn": False,
            "reasons": [],
            "harmful": False,
            "choice": "left" if dialogue.chosen_is_left else "right",
            "quarantined": False,
            "created_at": at,
        },
    }


def export_preference(session: Session, *, consent_default: bool) -> Iterator[dict[str, Any]]:
    """TRL's conversational preference format: who won, for each choice with a winner and each correction."""
    for sample in _exported(session, consent_default):
        if isinstance(sample, PairSample) and sample.choice in ("left", "right"):
            chosen, rejected = sample.left.text, sample.right.text
            if sample.choice == "right":
                chosen, rejected = rejected, chosen
            yield {"prompt": sample.messages, "chosen": _reply(chosen), "rejected": _reply(rejected)}
        elif isinstance(sample, CorrectionSample):
            yield {"prompt": sample.messages, "chosen": _reply(sample.correction), "rejected": _reply(sample.text)}


def export_unpaired(session: Session, *, consent_default: bool) -> Iterator[dict[str, Any]]:
    """TRL's conversational unpaired format. A rating above one half is a good reply; both_bad is two bad ones."""
    for sample in _exported(session, consent_default):
        if isinstance(sample, ThumbSample) and sample.label != 0.5:
            yield {"prompt": sample.messages, "completion": _reply(sample.text), "label": sample.label > 0.5}
        elif isinstance(sample, PairSample) and sample.choice == "both_bad":
            for side in (sample.left, sample.right):
                yield {"prompt": sample.messages, "completion": _reply(side.text), "label": False}


EXPORTS = {"preference": export_preference, "unpaired": export_unpaired}


def _exported(session: Session, consent_default: bool) -> Iterator[ThumbSample | PairSample | CorrectionSample]:
    # What may not train may not leave in a training format either. How to split it is the reader's business.
    return stream(session, lambda _key: Split.TRAIN, consent_default=consent_default)


def _reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
