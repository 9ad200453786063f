"""Low-rank adapters: the trainable matrices, how they merge into weights, and PEFT's file layout, which vLLM reads.

Source: Hu et al. 2021, LoRA (arXiv 2106.09685): W' = W + (alpha / rank) · B·A, with A random and B zero at the start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.backbone import ADAPTED, Backbone
from trainer.config import LoraConfig
from trainer.errors import OtherAdapter


class LoraAdapter(nn.Module):
    """Adapters for layers `first`..top of one backbone. B starts at zero: a new adapter changes nothing."""

    def __init__(self, backbone: Backbone, config: LoraConfig, seed: int, first: int = 0) -> None:
        super().__init__()
        self.config = config
        self.first = first
        self._backbone = (backbone,)  # in a tuple, so that the frozen weights are not this module's own
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        for layer in range(first, backbone.depth):
            for linear in ADAPTED:
                out_features, in_features = backbone.weight(f"layers.{layer}.{linear}.weight").shape
                a = torch.empty(config.rank, in_features)
                nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
                key = f"{layer}.{linear}".replace(".", "/")
                self.a[key] = nn.Parameter(a)
                self.b[key] = nn.Parameter(torch.zeros(out_features, config.rank))

    @property
    def scale(self) -> float:
        return self.config.alpha / self.config.rank

    def merged(self) -> dict[str, Tensor]:
        """W + s·B·A for every adapted weight, by its name below `model.`; differentiable in A and B."""
        dtype = self._backbone[0].dtype
        return {name: exact.to(dtype) for name, exact in self._exact().items()}

    @contextmanager
    def merged_once(self) -> Iterator[dict[str, Tensor]]:
        """Merged weights to go backwards through any number of times. Their gradients add up in fp32, and the way on to
        A and B is taken once, at the end."""
        exact = self._exact()
        dtype = self._backbone[0].dtype
        total: dict[str, Tensor] = {}

        def leaf(name: str, weight: Tensor) -> Tensor:
            def collect(copy: Tensor) -> None:
                assert copy.grad is not None
                total[name] = total[name] + copy.grad if name in total else copy.grad.float()
                copy.grad = None

            copy = weight.detach().to(dtype).requires_grad_()
            copy.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
            return copy

        yield {name: leaf(name, weight) for name, weight in exact.items()}
        torch.autograd.backward([exact[name] for name in total], list(total.values()))

    def _exact(self) -> dict[str, Tensor]:
        """The merged weights in fp32."""
        backbone = self._backbone[0]
        result: dict[str, Tensor] = {}
        for key, a in self.a.items():
            name = f"layers.{key.replace('/', '.')}.weight"
            result[name] = backbone.weight(name).float() + self.scale * (self.b[key] @ a)
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
        """Take over a published adapter. Raises OtherAdapter where it was made with another rank or alpha: its
        matrices would not fit, or act with another strength than they were trained with."""
        made = json.loads((folder / "adapter_config.json").read_text())
        if (made["r"], made["lora_alpha"]) != (self.config.rank, self.config.alpha):
            raise OtherAdapter(
                f"{folder.name} has an adapter of rank {made['r']} and alpha {made['lora_alpha']:g}, this run asks for "
                f"rank {self.config.rank} and alpha {self.config.alpha:g}: set ppo.lora to the adapter's, or roll back"
            )
        tensors = load_file(folder / "adapter_model.safetensors")
        with torch.no_grad():
            for key, a in self.a.items():
                name = "base_model.model.model.layers." + key.replace("/", ".")
                a.copy_(tensors[f"{name}.lora_A.weight"])
                self.b[key].copy_(tensors[f"{name}.lora_B.weight"])

    def round_to_served(self) -> None:
        """Round to bf16 in place, so that what is measured now is what will be served."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
