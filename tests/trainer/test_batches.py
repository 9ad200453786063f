"""Batches of prompts and replies: what is real, what is padding, and where each token is predicted from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import Batch

PAD = 0
ids = st.lists(st.integers(1, 40), min_size=1, max_size=9)
rows = st.lists(st.tuples(ids, ids), min_size=1, max_size=6)
Rows = list[tuple[list[int], list[int]]]


def _batch(pairs: Rows) -> Batch:
    return Batch.of([prompt for prompt, _ in pairs], [reply for _, reply in pairs], pad_id=PAD)


@given(rows)
def test_every_token_is_where_it_belongs(pairs: Rows) -> None:
    batch = _batch(pairs)
    mask, found, predicting = batch.reply_mask_BR, batch.reply_ids_BR, batch.predicting_BR
    assert batch.input_ids_BT.shape == (len(pairs), max(len(p) + len(r) for p, r in pairs))
    assert mask.shape == found.shape == predicting.shape == (len(pairs), max(len(r) for _, r in pairs))
    for row, (prompt, reply) in enumerate(pairs):
        whole = prompt + reply
        assert batch.input_ids_BT[row, : len(whole)].tolist() == whole
        assert not batch.input_ids_BT[row, len(whole) :].any()
        assert found[row][mask[row]].tolist() == reply
        assert mask[row].sum() == len(reply)
        # Token t of a reply is predicted at position context − 1 + t, which is the token just before it.
        assert predicting[row][mask[row]].tolist() == [len(prompt) - 1 + t for t in range(len(reply))]
        assert batch.input_ids_BT[row, predicting[row, 0]] == prompt[-1]


@given(rows, st.data())
def test_a_selection_is_the_batch_of_its_rows(pairs: Rows, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=6))
    chosen, direct = _batch(pairs).select(torch.tensor(index)), _batch([pairs[i] for i in index])
    assert torch.equal(chosen.input_ids_BT, direct.input_ids_BT)
    assert torch.equal(chosen.reply_mask_BR, direct.reply_mask_BR)
    assert torch.equal(chosen.lengths_B, direct.lengths_B)


@given(rows, st.integers(1, 60))
def test_groups_cover_every_row_once_and_keep_to_their_size(pairs: Rows, limit: int) -> None:
    batch = _batch(pairs)
    groups = batch.by_length(limit)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(pairs)))
    for group in groups:
        assert len(group) == 1 or batch.select(group).input_ids_BT.numel() <= limit


@pytest.mark.parametrize(
    ("prompts", "replies", "reason"),
    [([], [], "and some"), ([[1]], [], "as many"), ([[1]], [[]], "empty"), ([[]], [[1]], "empty")],
)
def test_a_batch_without_something_to_learn_is_refused(
    prompts: list[list[int]], replies: list[list[int]], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Batch.of(prompts, replies, pad_id=PAD)
