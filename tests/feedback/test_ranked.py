"""Rankings become all of their pairs, once however often, and every bad record is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from feedback.imports import import_file
from feedback.samples import collect
from feedback.store import Store
from trainer.rankings import rankings

ASKED = [{"role": "user", "content": "what shall I cook?"}]


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_ranking_is_all_of_its_pairs_and_the_trainer_sees_one_ranking(store: Store, tmp_path: Path) -> None:
    record = {"messages": ASKED, "ranking": ["soup", ["bread", "rice"], "stones"], "user": "ada"}
    path = write(tmp_path / "ranked.jsonl", record, {**record, "user": "bob", "ranking": ["rice", "soup"]})
    summary = import_file(store, path, "rankings")
    assert (summary.lines, summary.imported, summary.skipped) == (2, 7, 0)
    assert import_file(store, path, "rankings").already_there == 7
    with store.read() as session:
        samples = collect(session, consent_default=True)
    place = {"soup": 0, "bread": 1, "rice": 1, "stones": 2}
    mine = [pair for pair in samples.pairs if pair.user_id == "ranking-ada"]
    assert len({frozenset((pair.left.text, pair.right.text)) for pair in mine}) == 6
    for pair in mine:
        gap = place[pair.left.text] - place[pair.right.text]
        assert pair.choice == ("tie" if gap == 0 else "left" if gap < 0 else "right")
        assert (pair.source, pair.messages) == ("ranking", ASKED)
    of = rankings(samples.pairs)
    assert {(of[pair.vote_id].replies, of[pair.vote_id].pairs) for pair in mine} == {(4, 6)}
    assert {of[pair.vote_id].pairs for pair in samples.pairs if pair.user_id == "ranking-bob"} == {1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranking": ["soup"]}, "2 to 16 texts"),
        ({"ranking": "soup"}, "2 to 16 texts"),
        ({"ranking": ["soup", 3]}, "2 to 16 texts"),
        ({"ranking": ["soup", ["bread", "soup"]]}, "the same text twice"),
        ({"ranking": ["soup", " "]}, "empty"),
        ({"messages": []}, "no list of messages"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "soup"}]}, "must be the user's"),
        ({"messages": [{"role": "cook", "content": "?"}]}, "no role"),
        ({"user": "a\nb"}, "not a name"),
    ],
)
def test_a_record_that_is_no_ranking_is_named(store: Store, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    good = {"messages": ASKED, "ranking": ["soup", "stones"]}
    summary = import_file(store, write(tmp_path / "r.jsonl", good, good | change), "rankings")
    assert (summary.imported, summary.skipped) == (1, 1)
    (problem,) = summary.problems
    assert problem.line == 2
    assert says in problem.reason
