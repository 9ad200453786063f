"""The work of a decoder layer between its products, each as one function with its gradient written by hand.

On a CPU it takes longer than the products themselves when torch's small operations do it: each goes through memory, and
converts bf16 there and back. `trainer.kernels` does a function in one pass; where that does not serve, torch does the
same here. Autograd would also keep every step between; here only what the gradient reads is kept.

Shapes: N packed tokens, C of them that ask, A heads, K of keys and values, D width of a head, H hidden, I inner width
of an MLP, V vocabulary, P prompts, Q rows of attention's grid, T its columns (see `trainer.batches`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import kernels


def precise_type(x: Tensor) -> torch.dtype:
    """fp32 for bf16 and fp32, and float64 for float64: a model in float64 is computed in float64 throughout."""
    return torch.promote_types(x.dtype, torch.float32)


def precise(x: Tensor) -> Tensor:
    return x.to(precise_type(x))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019 (arXiv 1910.07467), in fp32 as the models were trained."""
    return _AddNorm.apply(x, None, weight, eps)[1]  # type: ignore[no-any-return, no-untyped-call]


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + more, and that normed."""
    return _AddNorm.apply(x, more, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


class _AddNorm(torch.autograd.Function):
    """n = s / rms(s), out = w·n; ds = (g − n·mean(g·n)) / rms(s) with g = w·dout, and dw = Σ dout·n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        if kernels.fit(x):
            x, more = x.contiguous(), more.contiguous() if more is not None else None
            total = torch.empty_like(x) if more is not None else x
            out, inverse = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
            rows, width = inverse.numel(), x.shape[-1]
            kernels.call(
                "add_norm", x, more, weight, total if more is not None else None, out, inverse, rows, width, eps
            )
        else:
            total = x + more if more is not None else x
            exact = precise(total)
            inverse = torch.rsqrt(torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_() / x.shape[-1] + eps)
            out = weight * (exact * inverse).to(x.dtype)
        ctx.save_for_backward(total, weight, inverse)
        return total if more is not None else None, out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (above, gradient), (x, weight, inverse) = gradients, ctx.saved_tensors
        for_x, for_more, for_weight, _ = ctx.needs_input_grad
        if gradient is None:
            return above, above if for_more else None, None, None
        dx = dw = None
        if kernels.fit(x):
            dx, scratch = torch.empty_like(x), torch.zeros(x.shape[-1])
            above = above.contiguous() if above is not None else None
            rows, width = inverse.numel(), x.shape[-1]
            kernels.call("norm_back", gradient.contiguous(), above, x, weight, inverse, dx, scratch, rows, width)
            dw = scratch.to(weight.dtype) if for_weight else None
            return dx, dx if for_more else None, dw, None
        normed = precise(x) * inverse
        if for_weight:
            dw = (gradient * normed.to(x.dtype)).flatten(0, -2).sum(0, dtype=inverse.dtype).to(weight.dtype)
        if for_x or for_more:
            scaled = precise(gradient * weight)
            along = (scaled * normed).mean(-1, keepdim=True)
            dx = scaled.sub_(normed.mul_(along)).mul_(inverse).to(x.dtype)
            dx = dx if above is None else dx.add_(above)
        return dx, dx if for_more else None, dw, None


def swiglu(gate: Tensor, linear: Tensor) -> Tensor:
    """gate · σ(gate) · linear: Shazeer 2020 (arXiv 2002.05202)."""
    return _SwiGlu.apply(gate, linear)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, linear: Tensor) -> Tensor:
        ctx.save_for_backward(gate, linear)
        if not kernels.fit(gate):
            return F.silu(gate).mul_(linear)
        out = torch.empty_like(gate)
        kernels.call("swiglu", gate, linear, out, gate.numel())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (gate, linear) = gradients, ctx.saved_tensors
        if not kernels.fit(gate):
            return torch.ops.aten.silu_backward(gradient * linear, gate), F.silu(gate).mul_(gradient)
        for_gate, for_linear = torch.empty_like(gate), torch.empty_like(linear)
        kernels.call("swiglu_back", gradient.contiguous(), gate, linear, for_gate, for_linear, gate.numel())
        return for_gate, for_linear


class Places(NamedTuple):
    """Where packed tokens lie in attention's grid, and the rotary angles of their positions. Rows below the tokens are
    padding: they have angles and no slots."""

    slots_N: Tensor  # of prompts · width
    prompts: int
    width: int
    cos_ND: Tensor
    sin_ND: Tensor


class Grid(NamedTuple):
    """Who asks, who is asked, and who sees whom."""

    asking: Places
    asked: Places
    mask_P1QT: Tensor  # added to the scores
    scale: float  # of the scores


def attend(query_CAD: Tensor, key_NKD: Tensor, value_NKD: Tensor, grid: Grid) -> Tensor:
    """(C, A·D). Several heads of queries may share one of keys (Ainslie et al. 2023, arXiv 2305.13245).

    Plain products on a CPU, where the backward pass of torch's fused kernel is several times slower at a chat's
    lengths; that kernel on a GPU, where it keeps no table of scores.
    """
    if query_CAD.is_cuda:
        return _attend_in_one_kernel(query_CAD, key_NKD, value_NKD, grid)
    return _Attention.apply(query_CAD, key_NKD, value_NKD, grid)  # type: ignore[no-any-return, no-untyped-call]


def _attend_in_one_kernel(query_CAD: Tensor, key_NKD: Tensor, value_NKD: Tensor, grid: Grid) -> Tensor:
    """Dao et al. 2022 (arXiv 2205.14135), as torch has it."""
    asking, asked, mask, scale = grid
    queries = to_grid(query_CAD, asking, turn=True)
    keys, values = to_grid(key_NKD, asked, turn=True), to_grid(value_NKD, asked, turn=False)
    shared = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(shared, dim=1) if shared > 1 else x for x in (keys, values))
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    return from_grid(attended, asking, turn=False).flatten(1)


class _Attention(torch.autograd.Function):
    """S = s·Q·Kᵀ + mask, P = softmax(S), O = P·V; dS = P·(dP − Σ dP·P) with dP = dO·Vᵀ, dQ = s·dS·K, dK = s·dSᵀ·Q,
    dV = Pᵀ·dO. The queries of heads that share a key lie one below the other, so that sums over them are products."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        asking, asked, mask, scale = grid
        queries = to_grid(query, asking, turn=True)
        keys, values = to_grid(key, asked, turn=True), to_grid(value, asked, turn=False)
        shared = (*keys.shape[:2], -1, keys.shape[-1])
        shares = queries.view(shared) @ keys.transpose(-1, -2)
        shares = softmax_(shares.view(*queries.shape[:3], -1), mask, scale).view(shares.shape)
        ctx.save_for_backward(queries, keys, values, shares)
        ctx.grid = grid
        return from_grid((shares @ values).view(queries.shape), asking, turn=False).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, shares = ctx.saved_tensors
        asking, asked, _, scale = ctx.grid
        heads, width = queries.shape[1], queries.shape[-1]
        shared = (*keys.shape[:2], -1, width)
        above = to_grid(gradients[0].view(-1, heads, width), asking, turn=False).view(shared)
        scores = softmax_back_(above @ values.transpose(-1, -2), shares, scale)
        for_queries = from_grid((scores @ keys).view(queries.shape), asking, turn=True)
        for_keys = from_grid(scores.transpose(-1, -2) @ queries.view(shared), asked, turn=True)
        for_values = from_grid(shares.transpose(-1, -2) @ above, asked, turn=False)
        return for_queries, for_keys, for_values, None


def to_grid(x_NAD: Tensor, places: Places, *, turn: bool) -> Tensor:
    """(P, A, width, D): packed tokens in their rows; what no token fills is zero. turn: by the rotary angles (Su et al.
    2021, arXiv 2104.09864, with halves in the place of neighbours)."""
    slots, prompts, width, cos_ND, sin_ND = places
    tokens, heads, each = len(slots), *x_NAD.shape[1:]
    if kernels.fit(x_NAD):
        grid = (torch.empty if tokens == prompts * width else torch.zeros)(
            prompts, heads, width, each, dtype=x_NAD.dtype
        )
        angles = (cos_ND, sin_ND) if turn else (None, None)
        kernels.call("to_grid", x_NAD.contiguous(), *angles, slots, grid, tokens, heads, width, each)
        return grid
    x_NAD, cos_ND, sin_ND = x_NAD[:tokens], cos_ND[:tokens], sin_ND[:tokens]
    turned = _turned(x_NAD, cos_ND[:, None], sin_ND[:, None]) if turn else x_NAD
    grid = x_NAD.new_zeros(prompts * width, heads, each).index_copy_(0, slots, turned)
    return grid.view(prompts, width, heads, each).transpose(1, 2).contiguous()


def from_grid(grid_PAWD: Tensor, places: Places, *, turn: bool) -> Tensor:
    """(N, A, D): the way back, which is also `to_grid`'s gradient. Padding is zero."""
    slots, _, width, cos_ND, sin_ND = places
    heads, each = grid_PAWD.shape[1], grid_PAWD.shape[3]
    tokens, rows = len(slots), len(cos_ND)
    if kernels.fit(grid_PAWD):
        x_NAD = torch.empty(rows, heads, each, dtype=grid_PAWD.dtype)
        x_NAD[tokens:].zero_()
        angles = (cos_ND, sin_ND) if turn else (None, None)
        kernels.call("from_grid", grid_PAWD.contiguous(), *angles, slots, x_NAD, tokens, heads, width, each)
        return x_NAD
    x_NAD = grid_PAWD.transpose(1, 2).flatten(0, 1)[slots]
    x_NAD = _turned(x_NAD, cos_ND[:tokens, None], -sin_ND[:tokens, None]) if turn else x_NAD
    return F.pad(x_NAD, (0, 0, 0, 0, 0, rows - tokens))


def _turned(x_NAD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_NAD.chunk(2, dim=-1)
    return x_NAD * cos + torch.cat([-second, first], dim=-1) * sin


def softmax_(scores_PAQT: Tensor, mask_P1QT: Tensor, scale: float) -> Tensor:
    """softmax(scale · scores + mask), in the place of the scores where that saves memory."""
    if kernels.fit(scores_PAQT):
        kernels.call("softmax", scores_PAQT, mask_P1QT, *scores_PAQT.shape, scale)
        return scores_PAQT
    scores = scores_PAQT.mul_(scale).add_(mask_P1QT)
    return torch.softmax(scores, dim=-1, dtype=precise_type(scores)).to(scores.dtype)


def softmax_back_(gradient: Tensor, shares: Tensor, scale: float) -> Tensor:
    """The gradient of the scores, in the place of that of the shares."""
    if kernels.fit(gradient):
        keys = shares.shape[-1]
        kernels.call("softmax_back", gradient, shares, shares.numel() // keys, keys, scale)
        return gradient
    return torch.ops.aten._softmax_backward_data(gradient, shares, -1, shares.dtype).mul_(scale)  # type: ignore[no-any-return]


def chosen_logprobs(logits_CV: Tensor, chosen_C: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(C,) each, in fp32 or better: log softmax(logits / T) at the chosen words, and the logarithm of the sum that
    divides them."""
    if kernels.fit(logits_CV):
        logprobs, norms = torch.empty(len(chosen_C)), torch.empty(len(chosen_C))
        kernels.call("choose", logits_CV, chosen_C, logprobs, norms, *logits_CV.shape, 1.0 / temperature)
        return logprobs, norms
    table = precise(logits_CV) / temperature
    norms = table.logsumexp(-1)
    return table.gather(1, chosen_C[:, None]).squeeze(1) - norms, norms


def chosen_back_(
    logits_CV: Tensor, chosen_C: Tensor, gradient_C: Tensor, norms_C: Tensor, temperature: float
) -> Tensor:
    """The gradient of the logits, (onehot − softmax) / T, for gradients of the chosen words' logprobs."""
    if kernels.fit(logits_CV):
        shape = logits_CV.shape
        kernels.call("choose_back", logits_CV, chosen_C, gradient_C, norms_C, *shape, 1.0 / temperature)
        return logits_CV
    each_C1 = gradient_C[:, None] / temperature
    shares = (precise(logits_CV) / temperature).sub_(norms_C[:, None]).exp_()
    return shares.mul_(-each_C1).scatter_add_(1, chosen_C[:, None], each_C1).to(logits_CV.dtype)


def accumulate_(total: Tensor, x: Tensor) -> Tensor:
    """total + x, in the place of the total, which is fp32 or better."""
    if not (kernels.fit(x) and x.is_contiguous()):
        return total.add_(x)
    kernels.call("accumulate", total, x, x.numel())
    return total
