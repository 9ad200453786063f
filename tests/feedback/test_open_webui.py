"""Open WebUI's export: each feedback a thumb on the reply it was about, with the messages that led there."""

import json
from pathlib import Path
from typing import Any

from feedback.imports import import_file
from feedback.privacy import erase
from feedback.samples import collect
from feedback.store import Store
from feedback.verdicts import counts


def feedback(number: int, rating: Any = 1, **data: Any) -> dict[str, Any]:
    """One element of `/api/v1/evaluations/feedbacks/all/export`: a second answer beside the one that is judged."""
    messages = {
        "m1": {"id": "m1", "parentId": None, "childrenIds": ["m2"], "role": "user", "content": f"first {number}"},
        "m2": {"id": "m2", "parentId": "m1", "childrenIds": ["m3"], "role": "assistant", "content": "answer"},
        "m3": {"id": "m3", "parentId": "m2", "childrenIds": ["m4", "m5"], "role": "user", "content": "second"},
        "m4": {"id": "m4", "parentId": "m3", "childrenIds": [], "role": "assistant", "content": "other"},
        "m5": {"id": "m5", "parentId": "m3", "childrenIds": [], "role": "assistant", "content": f"judged {number}"},
    }
    chat = {"id": "", "title": "t", "models": ["llama3:8b"], "params": {"system": "Be brief."},
            "history": {"currentId": "m5", "messages": messages}, "messages": list(messages.values())}  # fmt: skip
    return {
        "id": f"f-{number}",
        "user_id": "7c0b4c1e",
        "version": 0,
        "type": "rating",
        "data": {"rating": rating, "model_id": "llama3:8b", "sibling_model_ids": ["phi3"], "reason": "too_verbose",
                 "comment": "", "tags": ["general"], "details": {"rating": 7}, **data},
        "meta": {"arena": False, "model_id": "llama3:8b", "message_id": "m5", "message_index": 4, "chat_id": "c1"},
        "snapshot": {"chat": {"id": "c1", "user_id": "7c0b4c1e", "title": "t", "chat": chat}},
        "created_at": 1726000000,
        "updated_at": 1726000100,
    }  # fmt: skip


def export(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_a_feedback_is_a_thumb_on_the_message_that_it_names(store: Store, tmp_path: Path) -> None:
    path = export(tmp_path / "feedback-history-export.json", feedback(1), feedback(2, -1, comment="no"))
    summary = import_file(store, path, "open-webui")
    assert (summary.imported, summary.skipped) == (2, 0)
    assert import_file(store, path, "open-webui").already_there == 2
    with store.read() as session:
        assert collect(session, consent_default=False).thumbs == []  # nobody asked these people
        up, down = sorted(collect(session, consent_default=True).thumbs, key=lambda thumb: thumb.text)
        assert counts(session).conversations == 1
    assert up.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first 1"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "second"},
    ]
    assert (up.text, up.thumb, down.thumb, up.reasons, up.user_id) == (
        "judged 1", "up", "down", ["too_verbose"], "open-webui/7c0b4c1e"
    )  # fmt: skip
    assert up.rating is not None
    assert abs(up.rating - 2 / 3) < 1e-9


def test_a_feedback_that_changed_is_a_changed_vote(store: Store, tmp_path: Path) -> None:
    import_file(store, export(tmp_path / "monday.json", feedback(1), feedback(2)), "open-webui")
    summary = import_file(store, export(tmp_path / "friday.json", feedback(1, -1), feedback(2)), "open-webui")
    assert (summary.imported, summary.changed, summary.already_there) == (0, 1, 1)
    with store.read() as session:
        found = counts(session)
    assert (found.thumbs_up, found.thumbs_down, found.revisions) == (1, 1, 3)


def test_who_was_erased_stays_out(store: Store, tmp_path: Path) -> None:
    path = export(tmp_path / "export.json", feedback(1))
    import_file(store, path, "open-webui")
    erase(store, tmp_path / "runs", "open-webui/7c0b4c1e")
    summary = import_file(store, path, "open-webui")
    assert [(problem.line, problem.reason) for problem in summary.problems] == [(1, "its user was erased")]


def test_what_cannot_be_read_is_named(store: Store, tmp_path: Path) -> None:
    def changed(**fields: Any) -> dict[str, Any]:
        return {**feedback(1), **fields}

    def chat(**fields: Any) -> dict[str, Any]:
        row = feedback(1)
        row["snapshot"]["chat"]["chat"] |= fields
        return row

    def message(name: str, **fields: Any) -> dict[str, Any]:
        row = feedback(1)
        row["snapshot"]["chat"]["chat"]["history"]["messages"][name] |= fields
        return row

    bad: dict[str, Any] = {
        "no id or no user_id": changed(user_id=None),
        "type: must be rating": changed(type="other"),
        "data.rating: must be 1 or -1, not 'None'": feedback(1, None),
        "has no snapshot": changed(snapshot=None),
        "has no message 'm9'": changed(meta={"message_id": "m9"}),
        "does not say what was judged": changed(meta={}),
        "go round in a circle": message("m1", parentId="m5"),
        "a message is not text alone": message("m3", files=[{"type": "image"}]),
        "a message has no role": message("m2", role="tool"),
        "does not end with a reply": changed(meta={"message_id": "m3"}),
        "a last reply is empty": message("m5", content=""),
        "comment: 5000 characters": feedback(1, comment="x" * 5000),
    }
    bad["not an object"] = 3
    path = export(tmp_path / "export.json", *bad.values(), feedback(9))
    summary = import_file(store, path, "open-webui")
    assert (summary.imported, summary.skipped) == (1, len(bad))
    for words, problem in zip(bad, summary.problems, strict=True):
        assert words in problem.reason
    older = chat(history={})  # before the tree there was the list of shown messages
    older["snapshot"]["chat"]["chat"]["messages"] = [
        {"id": "m1", "role": "user", "content": "q"}, {"id": "m5", "role": "assistant", "content": "a"},
    ]  # fmt: skip
    older["id"] = "older"
    assert import_file(store, export(tmp_path / "older.json", older), "open-webui").imported == 1
