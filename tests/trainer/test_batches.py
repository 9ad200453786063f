"""Packed batches: where each token lies, what it sees, and where it is predicted from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import POSITIONS, ROWS, Batch, padded, rounded_up

ids = st.lists(st.integers(1, 40), min_size=1, max_size=9)
rows = st.lists(st.tuples(st.sampled_from([[7], [7, 8, 9], [3, 3]]), ids), min_size=1, max_size=8)
Rows = list[tuple[list[int], list[int]]]


def _batch(pairs: Rows, *, shared: bool = True) -> Batch:
    return Batch.of([prompt for prompt, _ in pairs], [reply for _, reply in pairs], shared=shared)


@given(rows, st.booleans())
def test_every_token_is_where_it_belongs(pairs: Rows, shared: bool) -> None:
    batch = _batch(pairs, shared=shared)
    mask, found = batch.reply_mask_BR, batch.reply_ids_BR
    assert len(batch) == len(pairs)
    assert mask.shape == found.shape == (len(pairs), max(len(r) for _, r in pairs))
    read_C, at_C = batch.ids_N[batch.read_C], batch.positions_N[batch.read_C]
    for row, (prompt, reply) in enumerate(pairs):
        assert found[row][mask[row]].tolist() == reply
        assert read_C[batch.token_BR[row][mask[row]]].tolist() == reply
        # Token t of a reply stands at position context + t, and is predicted by the token before it.
        assert at_C[batch.token_BR[row][mask[row]]].tolist() == [len(prompt) + t for t in range(len(reply))]
        assert read_C[batch.predicting_BR[row][mask[row]]].tolist() == [prompt[-1], *reply[:-1]]
        assert at_C[batch.predicting_BR[row][mask[row]]].tolist() == [len(prompt) - 1 + t for t in range(len(reply))]


@given(rows)
def test_neighbours_with_the_same_prompt_run_it_once(pairs: Rows) -> None:
    shared = 1 + sum(pairs[i][0] != pairs[i - 1][0] for i in range(1, len(pairs)))
    assert _batch(pairs).prompts == shared
    assert _batch(pairs, shared=False).prompts == len(pairs)
    alone = sum(len(prompt) + len(reply) for prompt, reply in pairs)
    assert len(_batch(pairs, shared=False).ids_N) == alone, "no position is padding"
    saved = sum(len(pairs[i][0]) for i in range(1, len(pairs)) if pairs[i][0] == pairs[i - 1][0])
    assert len(_batch(pairs).ids_N) == alone - saved


def test_a_reply_sees_its_prompt_and_itself_and_nothing_later() -> None:
    batch = Batch.of([[5, 6], [5, 6], [7]], [[1, 2], [3], [4]])
    seen = batch.mask(torch.float32, read=False) == 0
    assert seen.shape == (2, 1, POSITIONS, POSITIONS)
    expected = [
        [1, 0, 0, 0, 0],  # 5
        [1, 1, 0, 0, 0],  # 6
        [1, 1, 1, 0, 0],  # 1, of the first reply
        [1, 1, 1, 1, 0],  # 2
        [1, 1, 0, 0, 1],  # 3, of the second
    ]
    assert seen[0, 0, :5, :5].int().tolist() == expected
    assert not seen[0, 0, :5, 5:].any(), "nobody sees what rounds the grid up"
    read = batch.mask(torch.float32, read=True) == 0
    assert read[0, 0, :4, :5].int().tolist() == expected[1:]
    assert not read[0, 0, :4, 5:].any()


@given(rows, st.booleans(), st.data())
def test_a_selection_is_the_batch_of_its_rows_and_knows_where_they_were(
    pairs: Rows, shared: bool, data: st.DataObject
) -> None:
    batch = _batch(pairs, shared=shared)
    index = data.draw(st.lists(st.integers(0, batch.prompts - 1), min_size=1, max_size=6, unique=True))
    part = batch.select(torch.tensor(index))
    assert torch.equal(part.batch.ids_N, batch.ids_N[part.tokens])
    assert torch.equal(part.batch.positions_N, batch.positions_N[part.tokens])
    steps = part.batch.reply_mask_BR.shape[1]
    assert torch.equal(part.batch.reply_ids_BR, batch.reply_ids_BR[part.replies, :steps])
    assert torch.equal(part.batch.reply_mask_BR, batch.reply_mask_BR[part.replies, :steps])


@given(rows, st.integers(1, 60))
def test_parts_cover_every_reply_once_and_keep_to_their_size(pairs: Rows, limit: int) -> None:
    batch = _batch(pairs)
    parts = batch.by_length(limit)
    assert sorted(torch.cat([part.replies for part in parts]).tolist()) == list(range(len(pairs)))
    assert sorted(torch.cat([part.tokens for part in parts]).tolist()) == list(range(len(batch.ids_N)))
    for part in parts:
        assert part.batch.prompts == 1 or part.batch.prompts * part.batch.row_tokens <= limit
    some = batch.by_length(limit, among=torch.tensor([0]))
    assert [part.rows.tolist() for part in some] == [[0]]


@given(rows, st.integers(1, 60), st.integers(2, 3))
def test_parts_are_as_many_for_each_worker_and_of_one_size(pairs: Rows, limit: int, multiple: int) -> None:
    batch = _batch(pairs)
    least, parts = len(batch.by_length(limit)), batch.by_length(limit, multiple=multiple)
    assert len(parts) <= rounded_up(least, multiple)
    grids = [part.batch.prompts * part.batch.row_tokens for part in parts]
    smaller = batch.by_length(max(grids) - 1, multiple=1)
    assert len(smaller) > rounded_up(least, multiple) or max(grids) == max(part.batch.row_tokens for part in parts), (
        "no limit below would do"
    )


@pytest.mark.parametrize(
    ("prompts", "replies", "reason"),
    [([], [], "and some"), ([[1]], [], "as many"), ([[1]], [[]], "empty"), ([[]], [[1]], "empty")],
)
def test_a_batch_without_something_to_learn_is_refused(
    prompts: list[list[int]], replies: list[list[int]], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Batch.of(prompts, replies)


@given(st.integers(1, 200))
def test_rows_are_padded_to_whole_multiples_with_zeros(count: int) -> None:
    x = torch.ones(count, 3)
    found = padded(x)
    assert len(found) % ROWS == 0
    assert len(found) - count < ROWS
    assert torch.equal(found[:count], x)
    assert not found[count:].any()
    assert len(padded(torch.ones(count))) == len(found)
