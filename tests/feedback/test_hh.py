"""Pairs in, pairs out: whole dialogues or none, once however often, and every bad line named."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from feedback.errors import BadImport
from feedback.exports import export_preference, export_unpaired
from feedback.hh import parse_turns
from feedback.imports import import_file, import_whole
from feedback.privacy import erase
from feedback.records import read_records
from feedback.samples import collect
from feedback.schema import Reply, User
from feedback.statements import table
from feedback.store import Store
from feedback.verdicts import counts
from feedback.votes import Ballot, cast_vote
from tests.feedback.conftest import add_comparison, add_reply


def hh_line(question: str, chosen: str, rejected: str, *, before: str = "") -> str:
    """One line in HH-RLHF's format; `before` is an exchange that came before the question."""
    prompt = f"{before}\n\nHuman: {question}\n\nAssistant: "
    return json.dumps({"chosen": prompt + chosen, "rejected": prompt + rejected}, ensure_ascii=False) + "\n"


def hh_file(path: Path, pairs: int) -> Path:
    lines = [hh_line(f"question {number}", f"good {number}", f"bad {number}") for number in range(pairs)]
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(lines).encode()))
    else:
        path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_a_file_becomes_samples_that_name_the_better_reply(store: Store, tmp_path: Path, name: str) -> None:
    path = hh_file(tmp_path / name, 450)  # more than two transactions
    seen: list[tuple[int, int]] = []
    summary = import_file(store, path, "hh", lambda done, total: seen.append((done, total)))
    assert (summary.lines, summary.imported, summary.already_there, summary.skipped) == (450, 450, 0, 0)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    with store.read() as session:
        samples = collect(session, consent_default=False)  # imported judgements carry their own consent
        assert counts(session).comparisons_decided == 450
    assert len(samples.pairs) == 450 - samples.split.dropped
    lefts = 0
    for pair in samples.pairs:
        number = pair.messages[0]["content"].removeprefix("question ")
        better, worse = (pair.left, pair.right) if pair.choice == "left" else (pair.right, pair.left)
        assert (better.text, worse.text) == (f"good {number}", f"bad {number}")
        assert pair.messages == [{"role": "user", "content": f"question {number}"}]
        assert better.token_ids is None
        assert pair.prompt_token_ids is None
        assert (better.policy_version, pair.source, pair.propensity) == ("imported", "hh", 0.5)
        lefts += pair.choice == "left"
    assert 170 < lefts < 280  # sides are as good as random


def test_the_same_file_twice_adds_nothing(store: Store, tmp_path: Path) -> None:
    path = hh_file(tmp_path / "pairs.jsonl", 30)
    import_file(store, path)
    with store.read() as session:
        before = [tuple(row) for row in session.execute(table(Reply).select())]
    with store.write() as session:
        summary = import_whole(session, path)
    assert (summary.imported, summary.already_there) == (0, 30)
    more = hh_file(tmp_path / "more.jsonl", 35)
    assert import_file(store, more).imported == 5
    with store.read() as session:
        after = [tuple(row) for row in session.execute(table(Reply).select())]
        assert counts(session).votes == 35
    assert set(map(repr, before)) <= set(map(repr, after))
    assert len(after) == 70


def test_what_was_erased_is_not_imported_again(store: Store, tmp_path: Path) -> None:
    path = hh_file(tmp_path / "pairs.jsonl", 3)
    import_file(store, path)
    with store.read() as session:
        user = session.execute(select(table(Reply).c.user_id).where(table(Reply).c.text == "good 1")).scalar_one()
    erase(store, tmp_path / "runs", user)
    summary = import_file(store, path)
    assert (summary.imported, summary.already_there, summary.skipped) == (0, 2, 1)
    assert [(problem.line, problem.reason) for problem in summary.problems] == [(2, "its user was erased")]
    with store.read() as session:
        assert sorted(session.execute(select(table(Reply).c.text)).scalars()) == ["bad 0", "bad 2", "good 0", "good 2"]


def test_a_line_twice_in_one_file_is_one_dialogue(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(hh_line("q", "good", "bad") * 3)
    summary = import_file(store, path)
    assert (summary.imported, summary.already_there) == (1, 2)


def test_bad_lines_are_named_and_skipped(store: Store, tmp_path: Path) -> None:
    good = hh_line("fine", "yes", "no")
    bad = {
        "not JSON": "{nope\n",
        "a list": "[1, 2]\n",
        "no rejected": '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b"}\n',
        "a number": '{"chosen": 3, "rejected": 4}\n',
        "no marks": '{"chosen": "hello", "rejected": "there"}\n',
        "starts with a reply": '{"chosen": "\\n\\nAssistant: b", "rejected": "\\n\\nAssistant: c"}\n',
        "ends with a question": '{"chosen": "\\n\\nHuman: a", "rejected": "\\n\\nHuman: b"}\n',
        "empty reply": hh_line("q", "", "no"),
        "same replies": hh_line("q", "same", " same "),
        "other prompt": hh_line("q", "a", "b").replace("Human: q", "Human: other", 1),
        "NUL": hh_line("q", "a\x00", "b"),
        "surrogate": hh_line("q", "SURROGATE", "b").replace("SURROGATE", "\\ud800"),
    }
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        (good + "\n" + "".join(bad.values())).encode() + b"\xff\xfe\n" + hh_line("last", "1", "2").encode()
    )
    summary = import_file(store, path)
    assert (summary.imported, summary.skipped) == (2, len(bad) + 1)
    assert [problem.line for problem in summary.problems] == list(range(3, 3 + len(bad) + 1))
    assert all(problem.reason for problem in summary.problems)
    with store.read() as session:
        found = counts(session)
    assert (found.votes, found.comparisons, found.conversations, found.replies) == (2, 2, 2, {"complete": 4})


def test_a_file_that_breaks_off_keeps_what_came_before(store: Store, tmp_path: Path) -> None:
    path = hh_file(tmp_path / "pairs.jsonl.gz", 2_000)
    path.write_bytes(path.read_bytes()[:-200])
    summary = import_file(store, path)
    assert 0 < summary.imported < 2_000
    assert summary.skipped == 1
    assert "breaks off" in summary.problems[0].reason
    with store.read() as session:
        assert counts(session).replies == {"complete": 2 * summary.imported}
    hh_file(path, 2_000)
    assert import_file(store, path).imported == 2_000 - summary.imported


def test_a_file_that_is_none(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_text("not gzip")
    for path in (tmp_path / "x.jsonl.gz", tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(BadImport):
            import_file(store, path)
    (tmp_path / "empty.jsonl").write_text("")
    assert import_file(store, tmp_path / "empty.jsonl").lines == 0


def test_a_very_long_line_is_skipped_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.records.MAX_RECORD_BYTES", 1_000)
    path = tmp_path / "pairs.jsonl"
    path.write_text(hh_line("a", "1", "2") + hh_line("b", "x" * 5_000, "2") + hh_line("c", "1", "2"))
    found = list(read_records(path))
    assert [getattr(item, "number", None) or item.line for item in found] == [1, 2, 3]
    assert "longer" in found[1].reason  # type: ignore[union-attr]


WORDS = (
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
    .map(str.strip)
    .filter(lambda text: text and "\n\nHuman:" not in f"\n\n{text}" and "\n\nAssistant:" not in f"\n\n{text}")
)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_turns_come_back_as_they_were_written(turns: list[tuple[str, str]]) -> None:
    text = "".join(f"\n\nHuman: {question}\n\nAssistant: {answer}" for question, answer in turns)
    expected = [
        {"role": role, "content": content}
        for question, answer in turns
        for role, content in (("user", question), ("assistant", answer))
    ]
    assert parse_turns(text) == expected


def test_what_leaves_is_what_was_said(store: Store) -> None:
    with store.write() as session:
        for choice in ("left", "right", "tie", "both_bad"):
            target = add_comparison(session, prompt=f"pair {choice}", texts=("L", "R"))
            cast_vote(session, user_id="ada", target_kind="comparison", target_id=target, ballot=Ballot(choice=choice))
        for name, fields in {
            "up": {"thumb": "up"},
            "down": {"thumb": "down", "correction": "better"},
            "middle": {"rating": 0.5},
            "high": {"rating": 0.9},
        }.items():
            target = add_reply(session, prompt=name, text="T")
            cast_vote(session, user_id="ada", target_kind="reply", target_id=target, ballot=Ballot(**fields))
        target = add_reply(session, "eve", prompt="eve")
        cast_vote(session, user_id="eve", target_kind="reply", target_id=target, ballot=Ballot(thumb="up"))
        session.execute(table(User).update().values(consent=None))
        session.execute(table(User).update().where(table(User).c.id == "eve").values(consent=False))
    with store.read() as session:
        preference = list(export_preference(session, consent_default=True))
        unpaired = list(export_unpaired(session, consent_default=True))
        assert list(export_unpaired(session, consent_default=False)) == []

    def words(row: dict[str, list[dict[str, str]]], *names: str) -> tuple[object, ...]:
        return tuple(row[name][-1]["content"] if isinstance(row[name], list) else row[name] for name in names)

    assert sorted(words(row, "prompt", "chosen", "rejected") for row in preference) == [
        ("down", "better", "T"),
        ("pair left", "L", "R"),
        ("pair right", "R", "L"),
    ]
    assert sorted(words(row, "prompt", "completion", "label") for row in unpaired) == [
        ("down", "T", False),
        ("high", "T", True),
        ("pair both_bad", "L", False),
        ("pair both_bad", "R", False),
        ("up", "T", True),
    ]
    assert preference[0]["chosen"][0]["role"] == "assistant"
