"""One record after another, from lines or an array, and the bad ones in their places."""

import gzip
import json
from pathlib import Path

import pytest

from feedback import records
from feedback.records import Problem, Record, read_records


def numbers(path: Path) -> list[int]:
    return [found.number if isinstance(found, Record) else -found.line for found in read_records(path)]


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, indent: int | None
) -> None:
    monkeypatch.setattr(records, "_CHUNK_BYTES", 7)
    rows = [{"at": at, "text": "ü]},[" * at} for at in range(40)]
    whole = ("\ufeff" + json.dumps(rows, indent=indent, ensure_ascii=False)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(whole) if name.endswith(".gz") else whole)
    found = list(read_records(path))
    assert [(each.number, each.value) for each in found if isinstance(each, Record)] == list(enumerate(rows, 1))
    assert len(found) == len(rows)


def test_an_array_that_breaks_gives_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    for text in ('[{"a": 1}, {"a": 2}, {"a": ', '[{"a": 1}, {"a": 2}, nope]', '[{"a": 1}, {"a": 2}'):
        path.write_text(text)
        assert numbers(path) == [1, 2, -3]
    path.write_bytes(b'[{"a": 1}, {"a": "\xff"}]')
    assert numbers(path)[-1] < 0
    path.write_text("[]")
    assert numbers(path) == []
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(records, "_CHUNK_BYTES", 64)
    path.write_text(json.dumps([{"a": "x" * 1_000}]))
    [problem] = read_records(path)
    assert isinstance(problem, Problem)
    assert problem.line == 1
