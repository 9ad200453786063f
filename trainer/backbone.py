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

    def run(self, hidden_NH: Tensor, batch: Batch, start: int, stop: int, weights: Weights = FROZEN) -> Tensor:
        """Layers start..stop−1, with `weights` in place of the frozen ones. (N, H), but (C, H) from the top: the last
        layer computes only what is read."""
        if start == stop:
            return hidden_NH
        hidden_NH = padded(hidden_NH)
        cos_1ND, sin_1ND = self._inner.rotary_emb(hidden_NH, position_ids=padded(batch.positions_N)[None])
        places = Places(batch.slot_N, batch.prompts, batch.row_tokens, cos_1ND[0], sin_1ND[0])
        for index in range(start, stop):
            hidden_NH = self._layer(index, hidden_NH, batch, places, weights)
        return hidden_NH[: len(batch.read_C if stop == self.depth else batch.ids_N)]

    def _layer(
        self,
        index: int,
        hidden_NH: Tensor,
        batch: Batch,
        places: Places,
        weights: Weights,
    ) -> Tensor:
        """One decoder layer; the uppermost one only for the tokens that are read."""
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

        normed_NH = norm("input_layernorm", hidden_NH)
        asking_NH, asking = normed_NH, places
        top = index == self.depth - 1
        if top:
            read_C = padded(batch.read_C)
            asking_NH, hidden_NH, cos_CD, sin_CD = (
                x.index_select(0, read_C) for x in (normed_NH, hidden_NH, places.cos_ND, places.sin_ND)
            )
            asking = Places(batch.read_slot_C, batch.prompts, batch.row_reads, cos_CD, sin_CD)
        query, key, value = heads("q", asking_NH), heads("k", normed_NH), heads("v", normed_NH)
        if hasattr(layer.self_attn, "q_norm"):
            query, key = norm("self_attn.q_norm", query), norm("self_attn.k_norm", key)
        grid = Grid(asking, places, batch.mask(hidden_NH.dtype, read=top), layer.self_attn.scaling)
        attended = attend(query, key, value, grid)
        hidden_NH, normed_NH = add_norm(
            hidden_NH, linear("self_attn.o_proj", attended), *normer("post_attention_layernorm")
        )
        gated = swiglu(linear("mlp.gate_proj", normed_NH), linear("mlp.up_proj", normed_NH))
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
