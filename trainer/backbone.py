"""One frozen decoder that many adapters share, run layer by layer over packed tokens.

Policy, critic and reward-model members are small sets of matrices (`trainer.lora`) over the same frozen weights. An
adapter that only touches the upper layers lets every other one reuse the hidden states below: `run` takes any range of
layers.

An adapter acts by replacing a layer's weights with W + s·B·A, computed once per step, so a step costs what a plain
step costs; adding x·A·B beside x·W would run many small products instead. One that acts on replies alone (`run_reads`)
sees prompts through the frozen layers' keys and values, which one pass leaves for all such adapters.

Works for decoders with Llama's layers (Llama, Qwen2, Qwen3, Mistral). They are written out here, and not called as
transformers' own modules, because those know no packed tokens and compute the uppermost layer where nobody reads it.
Sliding-window attention is not applied: keep sequences shorter than the window.

Shapes: P prompts, N packed tokens, C of them read, T positions of attention's grid, Q of its rows that are read,
A heads, D width of a head, H hidden, V vocabulary (see `trainer.batches`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.logging import disable_progress_bar

from trainer.batches import Batch, padded
from trainer.errors import UnsupportedModel
from trainer.fused import Grid, Places, add_norm, attend, rms_norm, swiglu
from trainer.optional_imports import without_optional

with without_optional():
    from transformers import AutoModelForCausalLM

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


class KeyValues(NamedTuple):
    """What a layer's attention sees of all tokens, N of them and padding."""

    key_NKD: Tensor
    value_NKD: Tensor


@dataclass(frozen=True)
class _Tokens:
    """A batch's tokens on attention's grid: all, and those that are read."""

    batch: Batch
    places: Places

    @cached_property
    def read_C(self) -> Tensor:
        return padded(self.batch.read_C)

    @cached_property
    def reading(self) -> Places:
        cos_CD, sin_CD = (x.index_select(0, self.read_C) for x in (self.places.cos_ND, self.places.sin_ND))
        return Places(self.batch.read_slot_C, self.batch.prompts, self.batch.row_reads, cos_CD, sin_CD)


@dataclass
class Trace:
    """What a pass leaves behind for others that go on from it."""

    first: int
    """The lowest layer whose keys and values are kept."""

    inputs_of: Collection[int]
    """The layers whose inputs are kept."""

    inputs: dict[int, Tensor] = field(default_factory=dict)  # (N, H), by layer
    keys_values: dict[int, KeyValues] = field(default_factory=dict)
    tokens: _Tokens = field(init=False)


class Backbone:
    def __init__(self, model: Any, folder: Path | None = None) -> None:
        """model: a causal LM of transformers. Its weights are frozen from now on."""
        self.config: Any = model.config
        if self.config.model_type not in FAMILIES:
            raise UnsupportedModel(
                f"{type(model).__name__} is of the family {self.config.model_type!r}, whose layers are not written "
                "down here: use a Llama, Qwen2, Qwen3 or Mistral model"
            )
        if self.config.hidden_act != "silu":
            raise UnsupportedModel(
                f"its MLPs use {self.config.hidden_act!r}, and only silu is written down here: use another model"
            )
        self.model: nn.Module = model.requires_grad_(False).eval()
        self.folder = folder
        self._inner: Any = model.model
        self.layers: nn.ModuleList = self._inner.layers

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None) -> Backbone:
        """device: unset, the CPU."""
        disable_progress_bar()  # a run has its own
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return cls(model if device is None else model.to(device), folder)

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

    @property
    def device(self) -> torch.device:
        return self._inner.embed_tokens.weight.device  # type: ignore[no-any-return]

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

    def run(
        self,
        hidden_NH: Tensor,
        batch: Batch,
        start: int,
        stop: int,
        weights: Weights = FROZEN,
        *,
        trace: Trace | None = None,
    ) -> Tensor:
        """Layers start..stop−1, with `weights` in place of the frozen ones. (N, H), but (C, H) from the top: the last
        layer computes only what is read. trace: is filled in."""
        if start == stop:
            return hidden_NH
        hidden_NH = padded(hidden_NH)
        tokens = self._tokens(batch, hidden_NH)
        if trace is not None:
            trace.tokens = tokens
        for index in range(start, stop):
            if trace is not None and index in trace.inputs_of:
                trace.inputs[index] = hidden_NH[: len(batch.ids_N)]
            hidden_NH, keys_values = self._layer(index, hidden_NH, tokens, weights)
            if trace is not None and index >= trace.first:
                trace.keys_values[index] = keys_values
        return hidden_NH[: len(batch.read_C if stop == self.depth else batch.ids_N)]

    def run_reads(self, trace: Trace, weights: Weights) -> Tensor:
        """(C, H): the layers from `trace.first` to the top once more, with other weights, for the tokens that are read
        alone. They see the other ones, the prompts, as the trace has them."""
        tokens = trace.tokens
        hidden_CH = trace.inputs[trace.first].index_select(0, tokens.read_C)
        for index in range(trace.first, self.depth):
            hidden_CH, _ = self._layer(index, hidden_CH, tokens, weights, trace.keys_values[index])
        return hidden_CH[: len(tokens.batch.read_C)]

    def _tokens(self, batch: Batch, hidden_NH: Tensor) -> _Tokens:
        cos_1ND, sin_1ND = self._inner.rotary_emb(hidden_NH, position_ids=padded(batch.positions_N)[None])
        return _Tokens(batch, Places(batch.slot_N, batch.prompts, batch.row_tokens, cos_1ND[0], sin_1ND[0]))

    def _layer(
        self, index: int, hidden: Tensor, tokens: _Tokens, weights: Weights, seen: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """One decoder layer, with the keys and values that it attended to; the uppermost one only for the tokens that
        are read. seen: of all tokens; then `hidden` is (C, H), of the tokens that are read, which replace their own."""
        layer: Any = self.layers[index]

        def linear(name: str, x: Tensor) -> Tensor:
            module, path = layer.get_submodule(name), f"layers.{index}.{name}"
            weight, bias = weights.get(f"{path}.weight", module.weight), weights.get(f"{path}.bias", module.bias)
            return F.linear(x, weight, bias)

        def normer(name: str) -> tuple[Tensor, float]:
            module = layer.get_submodule(name)
            return weights.get(f"layers.{index}.{name}.weight", module.weight), module.variance_epsilon

        def norm(name: str, x: Tensor) -> Tensor:
            return rms_norm(x, *normer(name))

        def heads(name: str, x: Tensor) -> Tensor:
            return linear(f"self_attn.{name}_proj", x).view(len(x), -1, layer.self_attn.head_dim)

        normed = norm("input_layernorm", hidden)
        asking = normed
        reads = seen is not None or index == self.depth - 1
        if reads and seen is None:
            asking, hidden = (x.index_select(0, tokens.read_C) for x in (normed, hidden))
        query, key, value = heads("q", asking), heads("k", normed), heads("v", normed)
        if hasattr(layer.self_attn, "q_norm"):
            query, key = norm("self_attn.q_norm", query), norm("self_attn.k_norm", key)
        if seen is not None:
            read_C = tokens.batch.read_C
            key = seen.key_NKD.index_copy(0, read_C, key[: len(read_C)])
            value = seen.value_NKD.index_copy(0, read_C, value[: len(read_C)])
        mask = tokens.batch.mask(hidden.dtype, read=reads)
        grid = Grid(tokens.reading if reads else tokens.places, tokens.places, mask, layer.self_attn.scaling)
        attended = attend(query, key, value, grid)
        hidden, normed = add_norm(hidden, linear("self_attn.o_proj", attended), *normer("post_attention_layernorm"))
        gated = swiglu(linear("mlp.gate_proj", normed), linear("mlp.up_proj", normed))
        return hidden + linear("mlp.down_proj", gated), KeyValues(key, value)

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
