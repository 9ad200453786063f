"""The work between a layer's products: right by autograd's own check, and the same from the compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.trainer.models import FAMILIES, causal_lm
from trainer import kernels
from trainer.backbone import Backbone
from trainer.batches import Batch
from trainer.fused import (
    Grid,
    Places,
    add_norm,
    attend,
    chosen_back_,
    chosen_logprobs,
    from_grid,
    rms_norm,
    swiglu,
    to_grid,
)
from trainer.logprobs import reply_logprobs

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS, HEADS, SHARING, WIDTH, LENGTH = 2, 4, 2, 6, 5


def _randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def _grid(dtype: torch.dtype) -> tuple[int, Grid]:
    """A causal grid of two prompts, the second one shorter than the grid is wide."""
    slots = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    angles = torch.cat([_randn(len(slots), WIDTH // 2)] * 2, dim=1)
    places = Places(slots, PROMPTS, LENGTH, angles.cos().to(dtype), angles.sin().to(dtype))
    mask = torch.full((LENGTH, LENGTH), torch.finfo(dtype).min, dtype=dtype).triu(1)
    return len(slots), Grid(places, places, mask.expand(PROMPTS, 1, -1, -1).contiguous(), 0.4)


def _functions(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Each function, as one of tensors to one tensor, and what to call it with."""
    tokens, grid = _grid(dtype)

    def randn(*shape: int) -> Tensor:
        return _randn(*shape, dtype=dtype).requires_grad_()

    return {
        "norm": (lambda x, w: rms_norm(x, w, 1e-5), [randn(3, 7), randn(7)]),
        "add and norm": (
            lambda x, more, w: torch.cat(add_norm(x, more, w, 1e-5)),
            [randn(3, 7), randn(3, 7), randn(7)],
        ),
        "swiglu": (swiglu, [randn(5, 9), randn(5, 9)]),
        "attention": (
            lambda q, k, v: attend(q, k, v, grid),
            [randn(tokens, HEADS, WIDTH), randn(tokens, SHARING, WIDTH), randn(tokens, SHARING, WIDTH)],
        ),
    }


NAMES = list(_functions(torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_what_small_differences_say(name: str) -> None:
    function, inputs = _functions(torch.float64)[name]
    torch.autograd.gradcheck(function, inputs)


def test_norm_and_swiglu_are_torchs_own() -> None:
    x, more, w = _randn(4, 7), _randn(4, 7), _randn(7)
    torch.testing.assert_close(rms_norm(x, w, 1e-5), F.rms_norm(x, [7], w, 1e-5))
    total, normed = add_norm(x, more, w, 1e-5)
    torch.testing.assert_close(total, x + more)
    torch.testing.assert_close(normed, F.rms_norm(x + more, [7], w, 1e-5))
    torch.testing.assert_close(swiglu(x, more), F.silu(x) * more)


def test_the_way_to_the_grid_and_back_is_no_way() -> None:
    tokens, grid = _grid(torch.float64)
    x = _randn(tokens, HEADS, WIDTH)
    turned = to_grid(x, grid.asked, turn=True)
    assert not turned[1, :, 3:].any(), "what no token fills is zero"
    torch.testing.assert_close(from_grid(turned, grid.asked, turn=True), x)
    assert not torch.allclose(from_grid(turned, grid.asked, turn=False), x)


@pytest.fixture
def compiled(one_thread: None) -> None:
    """The functions in C, which every machine that runs these tests can build."""
    assert kernels.library() is not None
    assert kernels.fit(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.fit(torch.zeros(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("compiled")
def test_the_compiled_functions_and_their_gradients_are_the_same_to_a_bf16(name: str) -> None:
    found, expected = [], []
    for results, dtype in ((found, torch.bfloat16), (expected, torch.float64)):
        function, inputs = _functions(dtype)[name]
        if dtype is torch.float64:  # from the same rounded numbers
            inputs = [x.detach().to(torch.bfloat16).double().requires_grad_() for x in inputs]
        out = function(*inputs)
        out.backward(_randn(*out.shape).to(torch.bfloat16).to(dtype))
        results += [out.detach(), *(x.grad for x in inputs)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=4e-2)


@pytest.mark.usefixtures("compiled")
def test_compiled_logprobs_are_right_for_any_size_of_logits() -> None:
    logits = (_randn(6, 50) * torch.tensor([0.1, 1, 10, 100, 1000, 0])[:, None]).to(torch.bfloat16)
    chosen, gradient = torch.tensor([0, 7, 49, 3, 4, 5]), torch.linspace(-2, 2, 6)
    table = torch.log_softmax(logits.double() / 0.7, -1)
    logprobs, norms = chosen_logprobs(logits, chosen, 0.7)
    torch.testing.assert_close(logprobs.double(), table.gather(1, chosen[:, None]).squeeze(1), rtol=1e-5, atol=1e-5)
    right = (F.one_hot(chosen, 50) - table.exp()) * gradient[:, None].double() / 0.7
    found = chosen_back_(logits.clone(), chosen, gradient, norms, 0.7)
    torch.testing.assert_close(found.double(), right, rtol=1e-2, atol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_what_is_not_a_number_is_not_hidden() -> None:
    x = _randn(2, 32, dtype=torch.bfloat16)
    x[0, 3] = torch.nan
    assert rms_norm(x, torch.ones(32, dtype=torch.bfloat16), 1e-5)[0].isnan().all()
    assert swiglu(x, x)[0, 3].isnan()
    assert chosen_logprobs(x, torch.tensor([0, 0]), 1.0)[0][0].isnan()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("compiled")
def test_a_bf16_model_is_as_near_to_the_exact_one_as_with_torchs_operations(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch.of([[5, 6, 7], [5, 6, 7], [8, 9]], [[11, 12], [13, 14, 15, 16, 1], [2, 3, 4]])

    def gradients(dtype: torch.dtype) -> Tensor:
        backbone = Backbone(causal_lm(family, initializer_range=0.1).to(torch.bfloat16).to(dtype))
        weights = {name: weight.detach().requires_grad_() for name, weight in backbone.weights().items()}
        hidden = backbone.run(backbone.embed(batch, weights), batch, 0, backbone.depth, weights)
        reply_logprobs(backbone, hidden, batch, 0.7, weights).sum().backward()
        return torch.cat([weight.grad.flatten().double() for weight in weights.values() if weight.grad is not None])

    exact, mine = gradients(torch.float32), gradients(torch.bfloat16)
    monkeypatch.setattr(kernels, "library", lambda: None)
    torchs = gradients(torch.bfloat16)
    assert not torch.equal(mine, torchs), "the compiled functions were in use"
    assert (mine - exact).norm() < 1.2 * (torchs - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_that_works_torch_does_it(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if compiler == "broken":
        (tmp_path / "cc").write_text("#!/bin/sh\necho no such option >&2; exit 1\n")
        (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels.library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            x = _randn(2, 8, dtype=torch.bfloat16)
            torch.testing.assert_close(swiglu(x, x).float(), (F.silu(x) * x).float(), rtol=2e-2, atol=2e-2)
        assert ("no C compiler" if compiler == "none" else "no such option") in caplog.text
    finally:
        kernels.library.cache_clear()
