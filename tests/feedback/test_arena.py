"""Chatbot Arena's battles: blind judgements of two replies to one prompt, and nothing else."""

import json
from pathlib import Path
from typing import Any

from feedback.imports import import_file
from feedback.samples import collect
from feedback.store import Store


def battle(number: int, winner: str = "model_a", **fields: Any) -> dict[str, Any]:
    """One battle as the published 33k has it."""
    asked = {"role": "user", "content": f"question {number}"}
    return {
        "question_id": f"q{number}",
        "model_a": "koala-13b",
        "model_b": "vicuna-13b",
        "winner": winner,
        "judge": f"arena_user_10.0.0.{number % 3}",
        "conversation_a": [asked, {"role": "assistant", "content": f"a {number}"}],
        "conversation_b": [asked, {"role": "assistant", "content": f"b {number}"}],
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.1,
        "openai_moderation": {"flagged": False},
    } | fields


def test_battles_become_pairs_as_their_judges_saw_them(store: Store, tmp_path: Path) -> None:
    winners = ["model_a", "model_b", "tie", "tie (bothbad)"]
    path = tmp_path / "clean_battle_conv.json"
    path.write_text(json.dumps([battle(at, winner) for at, winner in enumerate(winners)], indent=2))
    summary = import_file(store, path, "arena")
    assert (summary.lines, summary.imported, summary.skipped) == (4, 4, 0)
    assert import_file(store, path, "arena").already_there == 4
    lines = tmp_path / "again.jsonl"  # the same ones as lines, and one more
    lines.write_text("".join(json.dumps(battle(at, winner)) + "\n" for at, winner in enumerate([*winners, "tie"])))
    assert (import_file(store, lines, "arena").imported, import_file(store, lines, "arena").already_there) == (1, 5)
    with store.read() as session:
        samples = collect(session, consent_default=False)  # they agreed when they came to the arena
    found = {pair.messages[0]["content"]: pair for pair in samples.pairs}
    assert [found[f"question {at}"].choice for at in range(4)] == ["left", "right", "tie", "both_bad"]
    first = found["question 0"]
    assert (first.left.text, first.right.text, first.source) == ("a 0", "b 0", "arena")
    assert len({pair.user_id for pair in samples.pairs}) == 3
    assert "10.0.0" not in "".join(pair.user_id for pair in samples.pairs)  # a judge may be an address


def test_later_releases_are_read_too(store: Store, tmp_path: Path) -> None:
    said = {"conversation_a": "a", "conversation_b": "b"}
    newer = {
        name: [
            {"role": "user", "content": [{"type": "text", "text": "hi", "image": None}]},
            {"role": "assistant", "content": [{"type": "text", "text": text, "image": None}]},
        ]
        for name, text in said.items()
    }
    row = {"id": "x", "evaluation_session_id": "s", "winner": "both_bad", "model_a": "m", "model_b": "n", **newer}
    path = tmp_path / "140k.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert import_file(store, path, "arena").imported == 1
    with store.read() as session:
        [pair] = collect(session, consent_default=False).pairs
    assert (pair.messages, pair.choice) == ([{"role": "user", "content": "hi"}], "both_bad")


def test_what_is_no_blind_choice_between_two_replies_is_named(store: Store, tmp_path: Path) -> None:
    good = battle(1)
    image = [{"role": "user", "content": [{"type": "image"}]}, good["conversation_a"][1]]
    bad = {
        "not an object": "x",
        "has no question_id and no id": {**good, "question_id": None},
        "has no judge": {**good, "judge": ""},
        "winner: must be one of": {**good, "winner": "a"},
        "its judge saw the models' names": {**good, "anony": False},
        "conversation_a: no list of messages": {**good, "conversation_a": None},
        "a message has no role": {**good, "conversation_b": [{"content": "x"}]},
        "a message is not text alone": {**good, "conversation_a": image},
        "does not end with a reply": {**good, "conversation_a": good["conversation_a"][:1]},
        "a last reply is empty": {**good, "conversation_b": [{"role": "user", "content": "q"},
                                                             {"role": "assistant", "content": " "}]},
        "the two dialogues differ": {**good, "conversation_b": battle(2)["conversation_b"]},
        "the two replies are the same": {**good, "conversation_b": good["conversation_a"]},
        "holds a NUL": {**good, "conversation_b": [good["conversation_b"][0],
                                                   {"role": "assistant", "content": "\x00"}]},
    }  # fmt: skip
    path = tmp_path / "battles.json"
    path.write_text(json.dumps([good, *bad.values()]))
    summary = import_file(store, path, "arena")
    assert summary.imported == 1
    assert [problem.line for problem in summary.problems] == list(range(2, 2 + len(bad)))
    for words, problem in zip(bad, summary.problems, strict=True):
        assert words in problem.reason
