"""Files for other trainers: TRL's two formats in its two styles, as lines and as Parquet."""

import json
import sys
from pathlib import Path

import pytest

from feedback.errors import ExportUnavailable
from feedback.exports import EXPORTS, write_lines, write_parquet
from feedback.hh import parse_hh
from feedback.judgement import Judgement
from feedback.records import Record
from feedback.store import Store
from feedback.votes import Ballot, cast_vote
from tests.feedback.conftest import add_comparison, add_reply


@pytest.fixture
def voted(store: Store) -> Store:
    with store.write() as session:
        pair = add_comparison(session, prompt="q", texts=("L", "R"))
        cast_vote(session, user_id="ada", target_kind="comparison", target_id=pair, ballot=Ballot(choice="right"))
        fine = add_reply(session, prompt="über", text="T")
        cast_vote(session, user_id="ada", target_kind="reply", target_id=fine, ballot=Ballot(thumb="up"))
    return store


def test_plain_texts_have_the_marks_of_hh(voted: Store) -> None:
    with voted.read() as session:
        [preference] = EXPORTS["preference"](session, consent_default=True, plain=True)
        [unpaired] = EXPORTS["unpaired"](session, consent_default=True, plain=True)
    assert preference == {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " R", "rejected": " L"}
    assert unpaired == {"prompt": "\n\nHuman: über\n\nAssistant:", "completion": " T", "label": True}
    dialogues = {name: preference["prompt"] + preference[name] for name in ("chosen", "rejected")}
    read = parse_hh(Record(1, dialogues))  # prompt and reply together are what HH-RLHF holds
    assert isinstance(read, Judgement)
    assert read.messages == [{"role": "user", "content": "q"}]


def test_a_prompt_with_calls_of_tools_is_left_out(store: Store) -> None:
    with store.write() as session:
        called = [{"role": "user", "content": "q"}, {"role": "tool", "content": "4", "tool_call_id": "c"}]
        target = add_reply(session, messages=called)
        cast_vote(session, user_id="ada", target_kind="reply", target_id=target, ballot=Ballot(thumb="up"))
    with store.read() as session:
        assert list(EXPORTS["unpaired"](session, consent_default=True)) == []


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("format_", ["preference", "unpaired"])
def test_parquet_holds_what_the_lines_hold(voted: Store, tmp_path: Path, format_: str, plain: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    with voted.read() as session, lines.open("w") as file:
        assert write_lines(EXPORTS[format_](session, consent_default=True, plain=plain), file) == 1
        rows = EXPORTS[format_](session, consent_default=True, plain=plain)
        assert write_parquet(rows, table, format_, plain=plain) == 1
    assert parquet.read_table(table).to_pylist() == [json.loads(line) for line in lines.read_text().splitlines()]
    write_parquet(iter(()), tmp_path / "none.parquet", format_, plain=plain)
    assert parquet.read_table(tmp_path / "none.parquet").schema.equals(parquet.read_table(table).schema)


def test_without_pyarrow_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportUnavailable, match="pip install pyarrow"):
        write_parquet(iter(()), tmp_path / "rows.parquet", "unpaired")
