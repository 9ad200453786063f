"""Low-rank adapters: the trainable matrices, how they merge into weights, and PEFT's file layout, which vLLM reads.

Source: Hu et al. 2021, LoRA (arXiv 2106.09685): W' = W + (alpha / rank) · B·A, with A random and B zero at the start.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.backbone import ADAPTED, Backbone
from trainer.config import LoraConfig
from trainer.errors import OtherAdapter
from trainer.fused import precise
from trainer.trainable import Trainable


class LoraAdapter(Trainable):
    """Adapters for layers `first`..top of one backbone. B starts at zero: a new adapter changes nothing."""

    def __init__(self, backbone: Backbone, config: LoraConfig, seed: int, first: int = 0) -> None:
        super().__init__(backbone)
        self.config = config
        self.first = first
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        for layer in range(first, backbone.depth):
            for linear in ADAPTED:
                out_features, in_features = backbone.weight(f"layers.{layer}.{linear}.weight").shape
                a = torch.empty(config.rank, in_features)
                nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
                key = f"{layer}.{linear}".replace(".", "/")
                self.a[key] = nn.Parameter(a.to(backbone.device))  # drawn on the CPU: a seed gives the same everywhere
                self.b[key] = nn.Parameter(torch.zeros(out_features, config.rank, device=backbone.device))

    @property
    def scale(self) -> float:
        return self.config.alpha / self.config.rank

    def exact(self) -> dict[str, Tensor]:
        """W + s·B·A for every adapted weight."""
        backbone = self._backbone[0]
        result: dict[str, Tensor] = {}
        for key, a in self.a.items():
            name = f"layers.{key.replace('/', '.')}.weight"
            result[name] = precise(backbone.weight(name)) + self.scale * (self.b[key] @ a)
        return result

    def save_peft(self, folder: Path, base_name: str) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` (bf16, as it will be served)."""
        tensors: dict[str, Tensor] = {}
        for key, a in self.a.items():
            name = "base_model.model.model.layers." + key.replace("/", ".")
            tensors[f"{name}.lora_A.weight"] = a.detach().to(torch.bfloat16).contiguous()
            tensors[f"{name}.lora_B.weight"] = self.b[key].detach().to(torch.bfloat16).contiguous()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": False,
            "target_modules": sorted({name.rsplit(".", 1)[-1] for name in ADAPTED}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")

    def load_peft(self, folder: Path) -> None:
        """Take over a published adapter. Raises OtherAdapter where it was made with another rank or alpha or for other
        layers: its matrices would not fit, or act with another strength than they were trained with."""
        made = json.loads((folder / "adapter_config.json").read_text())
        if (made["r"], made["lora_alpha"]) != (self.config.rank, self.config.alpha):
            raise OtherAdapter(
                f"{folder.name} has an adapter of rank {made['r']} and alpha {made['lora_alpha']:g}, this run asks for "
                f"rank {self.config.rank} and alpha {self.config.alpha:g}: set ppo.lora to the adapter's, or roll back"
            )
        tensors = load_file(folder / "adapter_model.safetensors")
        layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in tensors})
        depth = self._backbone[0].depth
        if layers != list(range(self.first, depth)):
            raise OtherAdapter(
                f"{folder.name} has adapters on {len(layers)} of {depth} layers, from {layers[0]} up, this run "
                f"asks for {depth - self.first}: set ppo.adapted_share to {len(layers) / depth:.2g}, or roll back"
            )
        with torch.no_grad():
            for key, a in self.a.items():
                name = "base_model.model.model.layers." + key.replace("/", ".")
                a.copy_(tensors[f"{name}.lora_A.weight"])
                self.b[key].copy_(tensors[f"{name}.lora_B.weight"])
