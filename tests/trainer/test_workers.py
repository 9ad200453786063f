"""Parts of a batch side by side: all of them done once, evenly, and with the same sums each time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tests.trainer.models import make_backbone
from trainer.backbone import Weights
from trainer.batches import Batch, Part
from trainer.logprobs import reply_logprobs
from trainer.trainable import FullWeights, differentiate
from trainer.workers import MOST_COPIES_BYTES, each_part, even_parts, share_out, side_by_side

PROMPTS = [[5, 6], [7, 8, 9], [4], [5, 9, 3], [2, 3], [8]]
REPLIES = [[11, 12, 1], [13, 14, 15, 16, 17, 1], [1], [2, 3, 4], [11, 1], [6, 6, 6, 6]]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _parts() -> list[Part]:
    return Batch.of(PROMPTS, REPLIES).by_length(10)


@pytest.mark.usefixtures("two_threads")
def test_each_part_has_one_worker_and_the_largest_come_first() -> None:
    parts = _parts()
    shares = share_out(parts)
    assert len(shares) == 2
    assert sorted(id(part) for share in shares for part in share) == sorted(map(id, parts))
    loads = [sum(len(part.tokens) for part in share) for share in shares]
    assert max(loads) - min(loads) <= max(len(part.tokens) for part in parts)
    assert len(share_out(parts[:1])) == 1
    assert len(share_out(parts, MOST_COPIES_BYTES)) == 1, "a large model's gradients are kept once"


@pytest.mark.usefixtures("two_threads")
def test_what_one_part_could_hold_is_cut_for_two_workers() -> None:
    batch = Batch.of(PROMPTS, REPLIES)
    assert len(even_parts(batch, 1000)) == 2
    assert len(even_parts(batch, 1000, parameters=MOST_COPIES_BYTES)) == 1, "which has one worker"
    assert len(even_parts(batch, 1000, among=torch.tensor([0]))) == 1, "one row is not cut"


@pytest.mark.usefixtures("two_threads")
def test_tasks_run_at_the_same_time_with_their_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM does this to the process it runs in: all would go on with all cores, and without the compiled functions.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    together = threading.Barrier(2, timeout=20)

    def task() -> tuple[int, bool]:
        together.wait()
        return torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert side_by_side([task, task]) == [(1, False)] * 2
    assert side_by_side([task, task]) == [(1, True)] * 2
    assert torch.get_num_threads() == 2
    assert side_by_side([torch.get_num_threads]) == [2], "one alone has all"


@pytest.mark.usefixtures("two_threads")
def test_a_failure_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        each_part(_parts(), lambda part: print(1 // 0))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_two_workers_are_those_of_one_and_the_same_each_time(dtype: torch.dtype) -> None:
    backbone = make_backbone(num_hidden_layers=2)
    backbone.model.to(dtype)
    parts = Batch.of(PROMPTS * 4, REPLIES * 4).by_length(24)

    def gradients(threads: int) -> list[torch.Tensor]:
        learner = FullWeights(backbone)

        def work(part: Part, weights: Weights) -> int:
            piece = part.batch
            hidden = backbone.run(backbone.embed(piece, weights), piece, 0, backbone.depth, weights)
            reply_logprobs(backbone, hidden, piece, 0.7, weights).sum().backward()  # type: ignore[no-untyped-call]
            return len(part.replies)

        torch.set_num_threads(threads)
        assert sum(differentiate(parts, learner, work)) == len(PROMPTS) * 4
        torch.set_num_threads(2)
        return [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]

    alone, *together = gradients(1), gradients(2), gradients(2)
    for one, two, again in zip(alone, *together, strict=True):
        assert torch.equal(two, again)
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()) + 1e-6)
