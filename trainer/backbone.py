"""One frozen decoder that many adapters share, run layer by layer over packed tokens.

Policy, critic and reward-model members are small sets of matrices (`trainer.lora`) over the same frozen weights. An
adapter that only touches the upper layers lets every other one reuse the hidden states below: `run` takes any range of
layers.

An adapter acts by replacing a layer's weights with W + s·B·A, computed once per step, so a step costs what a plain
step costs; adding x·A·B beside x·W would run many small products instead.

Works for decoders with Llama's layers (Llama, Qwen2, Qwen3, Mistral). They are written out here, and not called as
transformers' own modules, because those know no packed tokens and compute the uppermost layer where nobody reads it.
Sliding-window attention is not applied: keep sequences shorter than the window.

Shapes: P prompts, N packed tokens, C of them read, T positions of attention's grid, Q of its rows that are read,
A heads, D width of a head, H hidden, V vocabulary (see `trainer.batches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from trainer.batches import Batch
from trainer.errors import UnsupportedModel

ADAPTED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
Weights = Mapping[str, Tensor]  # by name below `model.`, such as "layers.0.mlp.up_proj.weight"; the head is HEAD
FROZEN: Weights = {}


class Backbone:
    def __init__(self, model: Any, folder: Path | None = None) -> None:
        """model: a causal LM of transformers. Its weights are frozen from now on."""
        self.config: Any = model.config
        if self.config.model_type not in FAMILIES:
            raise UnsupportedModel(
                f"{type(model).__name__} is of the family {self.config.model_type!r}, whose layers are not written "
                "down here: use a Llama, Qwen2, Qwen3 or Mistral model"
            )
        self.model: nn.Module = model.requires_grad_(False).eval()
        self.folder = folder
        self._inner: Any = model.model
        self.layers: nn.ModuleList = self._inner.layers

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Backbone:
        disable_progress_bar()  # a run has its own
        return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), folder)

    @property
    def depth(self) -> int:
        return len(self.layers)

    def first_of(self, share: float) -> int:
        """The lowest of this share of the layers, counted from the top: at least one."""
        return self.depth - max(1, round(self.depth * share))

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self._inner.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    def weight(self, name: str) -> Tensor:
        """A frozen weight by its name below `model.`, such as `layers.0.mlp.up_proj.weight`."""
        return self._inner.get_parameter(name)  # type: ignore[no-any-return]

    def weights(self) -> dict[str, Tensor]:
        """All frozen weights by their names below `model.`, with the head where it is not the embedding again."""
        found = dict(self._inner.named_parameters())
        if not self.tied:
            found[HEAD] = self.model.get_parameter(HEAD)
        return found

    @property
    def tied(self) -> bool:
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def embed(self, batch: Batch, weights: Weights = FROZEN) -> Tensor:
        """(N, H)."""
        return F.embedding(batch.ids_N, weights.get(EMBEDDING, self._inner.embed_tokens.weight))

    def run(self, hidden_NH: Tensor, batch: Batch, start: int, stop: int, weights: Weights = FROZEN) -> Tensor:
        """Layers start..stop−1, with `weights` in place of the frozen ones. (N, H), but (C, H) from the top: the last
        layer computes only what is read."""
        cos_1ND, sin_1ND = self._inner.rotary_emb(hidden_NH, position_ids=batch.positions_N[None])
        rotary = cos_1ND[0][:, None], sin_1ND[0][:, None]
        for index in range(start, stop):
            hidden_NH = self._layer(index, hidden_NH, batch, rotary, weights)
        return hidden_NH

    def _layer(
        self,
        index: int,
        hidden_NH: Tensor,
        batch: Batch,
        rotary: tuple[Tensor, Tensor],
        weights: Weights,
    ) -> Tensor:
        """One decoder layer; the uppermost one only for the tokens that are read."""
        layer: Any = self.layers[index]

        def linear(name: str, x: Tensor) -> Tensor:
            module, path = layer.get_submodule(name), f"layers.{index}.{name}"
            weight, bias = weights.get(f"{path}.weight", module.weight), weights.get(f"{path}.bias", module.bias)
            return F.linear(x, weight, bias)

        def norm(name: str, x: Tensor) -> Tensor:
            module = layer.get_submodule(name)
            return rms_norm(x, weights.get(f"layers.{index}.{name}.weight", module.weight), module.variance_epsilon)

        def heads(name: str, x: Tensor) -> Tensor:
            return linear(f"self_attn.{name}_proj", x).view(len(x), -1, layer.self_attn.head_dim)

        normed_NH = norm("input_layernorm", hidden_NH)
        cos, sin = rotary
        asking, asking_rotary, slots, width = normed_NH, rotary, batch.slot_N, batch.row_tokens
        top = index == self.depth - 1
        if top:
            asking, asking_rotary = normed_NH[batch.read_C], (cos[batch.read_C], sin[batch.read_C])
            hidden_NH, slots, width = hidden_NH[batch.read_C], batch.read_slot_C, batch.row_reads
        query, key, value = heads("q", asking), heads("k", normed_NH), heads("v", normed_NH)
        if hasattr(layer.self_attn, "q_norm"):
            query, key = norm("self_attn.q_norm", query), norm("self_attn.k_norm", key)
        attended = attend(
            on_grid(rotated(query, *asking_rotary), slots, batch.prompts, width),
            on_grid(rotated(key, cos, sin), batch.slot_N, batch.prompts, batch.row_tokens),
            on_grid(value, batch.slot_N, batch.prompts, batch.row_tokens),
            batch.mask(hidden_NH.dtype, read=top),
            layer.self_attn.scaling,
        )
        hidden_NH = hidden_NH + linear("self_attn.o_proj", attended.flatten(0, 1)[slots])
        normed = norm("post_attention_layernorm", hidden_NH)
        gated = layer.mlp.act_fn(linear("mlp.gate_proj", normed)) * linear("mlp.up_proj", normed)
        return hidden_NH + linear("mlp.down_proj", gated)

    def normed(self, hidden: Tensor, weights: Weights = FROZEN) -> Tensor:
        norm = self._inner.norm
        return rms_norm(hidden, weights.get("norm.weight", norm.weight), norm.variance_epsilon)

    def head(self, weights: Weights = FROZEN) -> Tensor:
        """(V, H): times a normed hidden state, the logits."""
        frozen = self.model.get_parameter(f"model.{EMBEDDING}" if self.tied else HEAD)
        return weights.get(EMBEDDING if self.tied else HEAD, frozen)

    def merged_state(self, weights: Weights) -> dict[str, Tensor]:
        """The whole model's weights under their checkpoint names, with others in the place of the frozen ones."""
        state = dict(self.model.state_dict())
        for name, value in weights.items():
            state[name if name == HEAD else f"model.{name}"] = value.detach()
        if self.tied:
            state.pop(HEAD, None)
        return state


def precise_type(x: Tensor) -> torch.dtype:
    """fp32 for bf16 and fp32, and float64 for float64: a model in float64 is computed in float64 throughout."""
    return torch.promote_types(x.dtype, torch.float32)


def precise(x: Tensor) -> Tensor:
    return x.to(precise_type(x))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019 (arXiv 1910.07467), in fp32 as the models were trained."""
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    """n = x / rms(x), out = w·n; dx = (g − n·mean(g·n)) / rms(x) with g = w·dout, and dw = Σ dout·n. By hand, because
    autograd keeps and goes through twice as many fp32 copies of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = precise(x)
        inverse = torch.rsqrt(torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_() / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (exact * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,), (x, weight, inverse) = gradients, ctx.saved_tensors
        for_x, for_weight, _ = ctx.needs_input_grad
        normed = precise(x) * inverse
        dx = dw = None
        if for_weight:
            dw = (gradient * normed.to(x.dtype)).flatten(0, -2).sum(0, dtype=inverse.dtype).to(weight.dtype)
        if for_x:
            scaled = precise(gradient * weight)
            along = (scaled * normed).mean(-1, keepdim=True)
            dx = scaled.sub_(normed.mul_(along)).mul_(inverse).to(x.dtype)
        return dx, dw, None


def rotated(x_NAD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: Su et al. 2021 (arXiv 2104.09864), with halves in the place of neighbours."""
    first, second = x_NAD.chunk(2, dim=-1)
    return x_NAD * cos + torch.cat([-second, first], dim=-1) * sin


def on_grid(x_NAD: Tensor, slots: Tensor, prompts: int, width: int) -> Tensor:
    """(P, A, width, D): packed tokens in their rows; what no token fills is zero."""
    grid = x_NAD.new_zeros(prompts * width, *x_NAD.shape[1:]).index_copy(0, slots, x_NAD)
    return grid.view(prompts, width, *x_NAD.shape[1:]).transpose(1, 2)


def attend(query_PAQD: Tensor, key_PKTD: Tensor, value_PKTD: Tensor, mask_P1QT: Tensor, scale: float) -> Tensor:
    """(P, Q, A·D). Plain products: on CPU their backward pass is a fifth faster than the fused kernel's at a chat's
    lengths. Several heads of queries may share one of keys (Ainslie et al. 2023, arXiv 2305.13245)."""
    groups = query_PAQD.shape[1] // key_PKTD.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key_PKTD, value_PKTD))
    scores = query_PAQD @ key.transpose(-1, -2) * scale + mask_P1QT
    shares = torch.softmax(scores, dim=-1, dtype=precise_type(scores)).to(query_PAQD.dtype)
    return (shares @ value).transpose(1, 2).flatten(2)
