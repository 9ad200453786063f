"""One frozen decoder that many adapters share, run layer by layer.

Policy, critic and reward-model members are small sets of low-rank matrices (`trainer.lora`) over the same frozen
weights. An adapter that only touches the upper layers lets every other one reuse the hidden states below: `run` takes
any range of layers.

An adapter acts by replacing a layer's weights with W + s·B·A, computed once per step, so a step costs what a plain
step costs; adding x·A·B beside x·W would run many small products instead.

Works for decoders with Llama's layout (Llama, Qwen2, Qwen3, Mistral). Sliding-window attention is not applied: keep
sequences shorter than the window.

Shapes: B sequences, T tokens, H hidden, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

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


class Backbone:
    def __init__(self, model: nn.Module, folder: Path | None = None) -> None:
        inner = getattr(model, "model", None)
        needed = ("embed_tokens", "layers", "norm", "rotary_emb")
        if inner is None or any(not hasattr(inner, name) for name in needed):
            raise UnsupportedModel(
                f"{type(model).__name__} does not have Llama's layout ({', '.join(needed)} below .model): "
                "use a Llama, Qwen2, Qwen3 or Mistral model"
            )
        self.model = model.requires_grad_(False).eval()
        self.folder = folder
        self._inner = inner
        self.layers: nn.ModuleList = inner.layers
        self.config: Any = model.config

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Backbone:
        # On CPU plain attention runs backwards a fifth faster than the fused kernel at a chat's lengths.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        return cls(model, folder)

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self._inner.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    def weight(self, name: str) -> Tensor:
        """A frozen weight by its name below `layers`, such as `0.mlp.up_proj.weight`."""
        return self.layers.get_parameter(name)

    def embed(self, input_ids_BT: Tensor) -> Tensor:
        return self._inner.embed_tokens(input_ids_BT)  # type: ignore[no-any-return]

    def run(self, hidden_BTH: Tensor, start: int, stop: int, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Layers start..stop−1, with `weights` (names below `layers`) in place of the frozen ones."""
        positions_1T = torch.arange(hidden_BTH.shape[1])[None, :]
        rotary = self._inner.rotary_emb(hidden_BTH, position_ids=positions_1T)
        mask_11TT = self._causal_mask(hidden_BTH.shape[1], hidden_BTH.dtype)
        for index in range(start, stop):
            prefix = f"{index}."
            own = {k[len(prefix) :]: v for k, v in (weights or {}).items() if k.startswith(prefix)}
            hidden_BTH = functional_call(
                self.layers[index],
                own,
                (hidden_BTH,),
                {"attention_mask": mask_11TT, "position_ids": positions_1T, "position_embeddings": rotary},
            )
        return hidden_BTH

    def _causal_mask(self, length: int, dtype: torch.dtype) -> Tensor:
        """Added to attention's scores: 0 up to each position, the lowest number after it."""
        return torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]

    def normed(self, hidden: Tensor) -> Tensor:
        return self._inner.norm(hidden)  # type: ignore[no-any-return]

    def logits(self, normed_NH: Tensor) -> Tensor:
        """fp32 logits of normed hidden states."""
        return self.model.lm_head(normed_NH).float()  # type: ignore[no-any-return, operator]

    def merged_state(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole model's weights under their checkpoint names, with an adapter's merged in."""
        state = dict(self.model.state_dict())
        for name, value in weights.items():
            state[f"model.layers.{name}"] = value.detach()
        if getattr(self.config, "tie_word_embeddings", False):
            state.pop("lm_head.weight", None)
        return state
