"""The bytes of a text's tokens are the text, whatever the text and however it was cut."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from server.settings import Settings
from server.vocabulary import LOWEST, Vocabulary

TOKENIZER = AutoTokenizer.from_pretrained(Settings().model_folder())
VOCABULARY = Vocabulary(TOKENIZER)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True))


@given(text=st.text())
def test_the_bytes_of_its_tokens_are_the_text(text: str) -> None:
    assert b"".join(map(VOCABULARY.bytes_of, ids_of(text))) == text.encode()


def test_half_a_character_has_its_bytes_and_a_replacement_for_text() -> None:
    ids = ids_of("🜁")  # too rare for a token of its own
    assert len(ids) > 1
    content = VOCABULARY.content(ids, [-1.0] * len(ids))
    assert "\ufffd" in content[0]["token"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "🜁"


def test_special_tokens_have_no_entry_but_are_named_among_the_likely() -> None:
    (hello,) = ids_of("a")
    end = TOKENIZER.eos_token_id
    content = VOCABULARY.content([hello, end], [-0.5, -0.1], [[(hello, -0.5), (end, -1.5)], [(end, -0.1)]])
    assert [entry["token"] for entry in content] == ["a"]
    assert [other["token"] for other in content[0]["top_logprobs"]] == ["a", TOKENIZER.eos_token]


def test_what_sampling_ruled_out_is_still_json() -> None:
    (token,) = ids_of("a")
    content = VOCABULARY.content([token], [-0.5], [[(token, float("-inf"))]])
    assert json.loads(json.dumps(content, allow_nan=False))[0]["top_logprobs"][0]["logprob"] == LOWEST


def test_ids_that_no_token_has_spell_nothing() -> None:
    assert VOCABULARY.bytes_of(10**6) == b""


@pytest.fixture
def sentencepiece(tmp_path: Path) -> Vocabulary:
    backend = Tokenizer(models.BPE({"\u2581hi": 0, "<0xE2>": 1, "there": 2}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_vocabularies_with_byte_fallback_are_understood(sentencepiece: Vocabulary) -> None:
    assert [sentencepiece.bytes_of(token) for token in range(3)] == [b" hi", b"\xe2", b"there"]
