"""The votes that may train, as files for other trainers: TRL's preference and unpaired formats, JSON lines or Parquet.

Both formats exist twice: conversational (lists of messages, to which a trainer applies its chat template) and plain
(texts, with the marks that HH-RLHF uses). What may not train may not leave here either, and how to split it is the
reader's business. See https://huggingface.co/docs/trl/dataset_formats.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy.orm import Session

from feedback.bursts import find_bursts, votes_in
from feedback.errors import ExportUnavailable
from feedback.samples import CorrectionSample, PairSample, ThumbSample, stream
from feedback.splits import Split

PREFERENCE, UNPAIRED = "preference", "unpaired"
_MARKS = {"system": "System", "user": "Human", "assistant": "Assistant"}
_ROWS = 1_000  # of a group in a Parquet file

Row = dict[str, Any]


def export_preference(
    session: Session, *, consent_default: bool, plain: bool = False, burst_votes_per_minute: int = 0
) -> Iterator[Row]:
    """`prompt`, `chosen`, `rejected`: for each choice with a winner, and each correction."""
    for sample in _exported(session, consent_default, burst_votes_per_minute):
        if isinstance(sample, PairSample) and sample.choice in ("left", "right"):
            chosen, rejected = sample.left.text, sample.right.text
            if sample.choice == "right":
                chosen, rejected = rejected, chosen
        elif isinstance(sample, CorrectionSample):
            chosen, rejected = sample.correction, sample.text
        else:
            continue
        yield {
            "prompt": _prompt(sample.messages, plain),
            "chosen": _reply(chosen, plain),
            "rejected": _reply(rejected, plain),
        }


def export_unpaired(
    session: Session, *, consent_default: bool, plain: bool = False, burst_votes_per_minute: int = 0
) -> Iterator[Row]:
    """`prompt`, `completion`, `label`. A rating above one half is a good reply; both_bad is two bad ones."""
    for sample in _exported(session, consent_default, burst_votes_per_minute):
        if isinstance(sample, ThumbSample) and sample.label != 0.5:
            judged = [(sample.text, sample.label > 0.5)]
        elif isinstance(sample, PairSample) and sample.choice == "both_bad":
            judged = [(sample.left.text, False), (sample.right.text, False)]
        else:
            continue
        for text, label in judged:
            yield {"prompt": _prompt(sample.messages, plain), "completion": _reply(text, plain), "label": label}


EXPORTS = {PREFERENCE: export_preference, UNPAIRED: export_unpaired}


def write_lines(rows: Iterator[Row], file: TextIO) -> int:
    """Returns how many there were."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    return count


def write_parquet(rows: Iterator[Row], path: Path, format_: str, *, plain: bool = False) -> int:
    """Returns how many there were. The columns are the same ones when there are none.

    Raises:
        ExportUnavailable: pyarrow, which writes them, is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise ExportUnavailable("Parquet files need pyarrow: `pip install pyarrow`, or write a .jsonl file") from error
    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text)])
    said = text if plain else pyarrow.list_(message)
    names = ("prompt", "chosen", "rejected") if format_ == PREFERENCE else ("prompt", "completion")
    columns = [(name, said) for name in names]
    if format_ == UNPAIRED:
        columns.append(("label", pyarrow.bool_()))
    schema, count = pyarrow.schema(columns), 0
    with ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _exported(
    session: Session, consent_default: bool, burst_votes_per_minute: int
) -> Iterator[ThumbSample | PairSample | CorrectionSample]:
    left_out = votes_in(find_bursts(session, burst_votes_per_minute))
    for sample in stream(session, lambda _key: Split.TRAIN, consent_default=consent_default, left_out=left_out):
        # Calls of tools in a prompt are no text, and no two trainers spell them alike.
        if all(message["role"] in _MARKS and "tool_calls" not in message for message in sample.messages):
            yield sample


def _prompt(messages: list[dict[str, Any]], plain: bool) -> Any:
    if not plain:
        return [{"role": message["role"], "content": message["content"]} for message in messages]
    said = "".join(f"\n\n{_MARKS[message['role']]}: {message['content']}" for message in messages)
    return f"{said}\n\nAssistant:"


def _reply(text: str, plain: bool) -> Any:
    return f" {text}" if plain else [{"role": "assistant", "content": text}]
