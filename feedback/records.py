"""Files of JSON records, one a line or all in one array, compressed or not, read record by record.

A record is named by its number: that of its line, or its place in the array, from 1. What cannot be read is told in its
place, and reading goes on with the next line; an array that breaks cannot be read any further. Memory holds one record.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from feedback.errors import BadImport

MAX_RECORD_BYTES = 16_000_000
_CHUNK_BYTES = 1 << 16
_BETWEEN = re.compile(r"[\s,]*")

Progress = Callable[[int, int], None]
"""Called with the bytes of the file that have been read, and all of them."""


@dataclass(frozen=True)
class Record:
    number: int
    value: Any


@dataclass(frozen=True)
class Problem:
    line: int  # or the place in the array
    reason: str


def read_records(path: Path, on_progress: Progress | None = None) -> Iterator[Record | Problem]:
    """The records of a file, and in their place those that cannot be read.

    Raises:
        BadImport: the file cannot be opened or is not what its name says.
    """
    number = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as raw, _opened(raw, path) as file:
            try:
                for found in _array(file) if _is_array(file) else _lines(file):
                    number = found.number if isinstance(found, Record) else found.line
                    yield found
                    if on_progress is not None:
                        on_progress(raw.tell(), total)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                if number == 0:
                    raise BadImport(f"{path.name}: not a gzip file: {error}") from error
                yield Problem(number + 1, f"the compressed file breaks off or is damaged here: {error}")
    except OSError as error:
        raise BadImport(f"{path.name}: {error.strerror or error}") from error


def _opened(raw: BinaryIO, path: Path) -> io.BufferedReader:
    return io.BufferedReader(gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw)  # type: ignore


def _is_array(file: io.BufferedReader) -> bool:
    """An array of objects, that is: a line of JSON may be an array too, and is then no record of anybody's."""
    start = b"".join(file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").split())
    return start.startswith((b"[{", b"[]")) or start == b"["


def _lines(file: io.BufferedReader) -> Iterator[Record | Problem]:
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            yield Problem(number, f"longer than {MAX_RECORD_BYTES} bytes")
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_RECORD_BYTES)
        elif line.strip():
            try:
                yield Record(number, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Problem(number, f"not JSON: {error}")


def _array(file: io.BufferedReader) -> Iterator[Record | Problem]:
    decoder, text = json.JSONDecoder(), io.TextIOWrapper(file, encoding="utf-8-sig")
    number, held, ended = 0, "", False
    try:
        held = text.read(_CHUNK_BYTES)
        at = held.index("[") + 1
        while True:
            at = _BETWEEN.match(held, at).end()  # type: ignore[union-attr] # it matches nothing, too
            if held.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(held, at)
            except (ValueError, RecursionError) as error:
                held, at = held[at:], 0
                more = "" if ended or isinstance(error, RecursionError) else text.read(max(_CHUNK_BYTES, len(held)))
                ended = not more
                if ended or len(held) > MAX_RECORD_BYTES:
                    yield Problem(number + 1, f"not JSON, so the rest of the file is not read: {error}")
                    return
                held += more
                continue
            number += 1
            yield Record(number, value)
    except UnicodeDecodeError as error:
        yield Problem(number + 1, f"not UTF-8, so the rest of the file is not read: {error}")
    finally:
        text.detach()
