"""Whether a policy fits the base that an engine holds: every tensor's name and shape, before the engine sees any.

An engine given a tensor of the wrong shape fails halfway, with some layers new and some old; so nothing is left to it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from deploy.digests import BaseShapes
from deploy.errors import BadManifest, WrongShape
from deploy.manifest import LoraShape
from deploy.safetensors_check import read_header, shapes_of

_LORA_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# What config.json may say differently without changing what the weights mean.
_FREE_CONFIG_KEYS = {
    "_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def read_json_object(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadManifest(f"{path.name} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise BadManifest(f"{path.name} holds {type(body).__name__}, not an object")
    return body


def check_adapter_config(folder: Path, lora: LoraShape) -> None:
    """PEFT's config, which the engine reads, and the manifest must say the same: alpha / rank scales the adapter."""
    config = read_json_object(folder / "adapter_config.json")
    for key, promised in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if config.get(key) != promised:
            raise BadManifest(f"adapter_config.json has {key} = {config.get(key)!r}, the manifest says {promised!r}")
    targets = config.get("target_modules")
    named = sorted(targets) if isinstance(targets, list) else targets
    if named != sorted(lora.target_modules):
        raise BadManifest(f"adapter_config.json targets {named!r}, the manifest says {sorted(lora.target_modules)!r}")


def check_adapter_shapes(folder: Path, lora: LoraShape, base: BaseShapes) -> None:
    """lora_A is [rank, in], lora_B [out, rank], for a base weight of [out, in]; both or neither."""
    sides: dict[str, set[str]] = {}
    for name, info in read_header(folder / "adapter_model.safetensors").items():
        match = _LORA_NAME.fullmatch(name)
        if match is None:
            raise WrongShape(f"{name} is not the name of a LoRA tensor (base_model.model.<module>.lora_A.weight)")
        module, side = match["module"], match["side"]
        of_base = base.shapes.get(f"{module}.weight")
        if of_base is None or len(of_base) != 2:
            raise WrongShape(f"{name} has no matrix {module}.weight in the base to sit on")
        out_size, in_size = of_base
        expected = (lora.rank, in_size) if side == "A" else (out_size, lora.rank)
        if info.shape != expected:
            raise WrongShape(f"{name} is {list(info.shape)}; on this base it must be {list(expected)}")
        sides.setdefault(module, set()).add(side)
    if not sides:
        raise WrongShape("adapter_model.safetensors holds no tensor")
    for module, found in sides.items():
        if found != {"A", "B"}:
            missing = "lora_B" if "A" in found else "lora_A"
            raise WrongShape(f"{module} has no {missing}")


def check_full_shapes(folder: Path, base: BaseShapes) -> None:
    """The same architecture, the same tensors, the same shapes: only then can weights be swapped in place."""
    config = read_json_object(folder / "config.json")
    for key in sorted((config.keys() | base.config.keys()) - _FREE_CONFIG_KEYS):
        if config.get(key) != base.config.get(key):
            raise WrongShape(f"config.json has {key} = {config.get(key)!r}; the base has {base.config.get(key)!r}")
    shapes = shapes_of(folder)
    optional = {"lm_head.weight"} if base.ties_embeddings else set()
    if missing := base.shapes.keys() - shapes.keys() - optional:
        raise WrongShape(f"the checkpoint lacks {min(missing)}" + _and_more(missing))
    if surplus := shapes.keys() - base.shapes.keys() - optional:
        raise WrongShape(f"the checkpoint has {min(surplus)}, which the base does not" + _and_more(surplus))
    for name in shapes.keys() & base.shapes.keys():
        if shapes[name] != base.shapes[name]:
            raise WrongShape(f"{name} is {list(shapes[name])}; on this base it must be {list(base.shapes[name])}")


def _and_more(names: set[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
