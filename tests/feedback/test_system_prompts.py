"""System prompts in the log: versions never change, and the newest decision counts, for each key and for all others."""

import pytest

from feedback.errors import BadPrompt, UnknownPrompt
from feedback.schema import ApiKey
from feedback.store import Store
from feedback.system_prompts import MAX_CHARS, add_prompt, find_prompt, prompt_versions, set_use, texts_in_use, uses


def add(store: Store, name: str, *texts: str) -> list[str]:
    with store.write() as session:
        return [add_prompt(session, name=name, text=text, actor="ada")[0].id for text in texts]


def test_versions_are_numbered_by_name_and_the_same_text_is_no_new_one(store: Store) -> None:
    assert add(store, "shop", "Be brief.", "Be warm.", "Be warm.", "Be brief.") == [
        "shop@1",
        "shop@2",
        "shop@2",
        "shop@3",
    ]
    assert add(store, "talk", "Be brief.") == ["talk@1"]
    with store.read() as session:
        assert [row.id for row in prompt_versions(session)] == ["shop@1", "shop@2", "shop@3", "talk@1"]
        assert find_prompt(session, "shop").id == "shop@3"
        assert find_prompt(session, "shop@2").text == "Be warm."
        for unknown in ("shop@9", "nobody", "@1"):
            with pytest.raises(UnknownPrompt):
                find_prompt(session, unknown)


@pytest.mark.parametrize("name", ["", "Shop", "a b", "a@1", "x" * 65, "-a"])
def test_a_bad_name(store: Store, name: str) -> None:
    with store.write() as session, pytest.raises(BadPrompt):
        add_prompt(session, name=name, text="x", actor="ada")


@pytest.mark.parametrize("text", ["", "  \n", "x" * (MAX_CHARS + 1), "a\x00b"])
def test_a_bad_text(store: Store, text: str) -> None:
    with store.write() as session, pytest.raises(BadPrompt):
        add_prompt(session, name="shop", text=text, actor="ada")


def test_the_newest_decision_counts_for_each_key_and_for_all_others(store: Store) -> None:
    add(store, "shop", "one", "two")
    with store.write() as session:
        session.add(ApiKey(id="key-1", sha256="1", label="shop", scopes=["chat"], user_id="u-1"))
        session.flush()
        first = set_use(session, arms=[("shop@1", 1), ("shop", 3)], key_id=None, actor="ada")
        assert first.arms == [{"version": "shop@1", "weight": 0.25}, {"version": "shop@2", "weight": 0.75}]
        again = set_use(session, arms=[("shop@1", 1), ("shop@2", 1)], key_id=None, actor="ada")
        assert again.salt == first.salt, "other weights move no more users than they must"
        other = set_use(session, arms=[("shop@2", 1)], key_id=None, actor="ada")
        assert other.salt != first.salt
        set_use(session, arms=[], key_id="key-1", actor="ada")
        assert [(use.key_id, use.arms) for use in uses(session)] == [(None, other.arms), ("key-1", [])]
        set_use(session, arms=None, key_id="key-1", actor="ada")
        found, texts = texts_in_use(session)
        assert [use.key_id for use in found] == [None]
        assert texts == {"shop@2": "two"}


def test_a_decision_that_cannot_be(store: Store) -> None:
    add(store, "shop", "one")
    with store.write() as session:
        for arms in ([("shop@1", 0.0)], [("shop@1", float("nan"))], [("shop@1", 1), ("shop", 1)], None):
            with pytest.raises(BadPrompt):
                set_use(session, arms=arms, key_id=None, actor="ada")
        for arms, key_id in (([("nobody", 1)], None), ([("shop", 1)], "key-none")):
            with pytest.raises(UnknownPrompt):
                set_use(session, arms=arms, key_id=key_id, actor="ada")
        assert uses(session) == []
