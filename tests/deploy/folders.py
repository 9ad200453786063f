"""Real folders to publish and to damage: a random tiny Llama, adapters on it, and full checkpoints like it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from deploy.artifacts import Published, publish
from deploy.digests import BaseShapes, base_shapes, model_digest, tokenizer_digest
from deploy.manifest import Draft, LoraShape, Probe, ProbeCase
from feedback.schema import PolicyKind

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCAB = 16, 24, 2, 1, 2, 40
RANK, ALPHA = 4, 8.0
TARGETS = ["q_proj", "v_proj", "down_proj"]
_SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


def make_model(folder: Path, seed: int = 0, template: str = "{{ messages }}", **config: Any) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((VOCAB, HIDDEN)),
        "model.norm.weight": np.ones(HIDDEN),
    }
    for layer in range(LAYERS):
        for module, shape in _SHAPES.items():
            tensors[f"model.layers.{layer}.{module}.weight"] = rng.standard_normal(shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(HIDDEN)
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    vocabulary = {f"token{i}": i for i in range(VOCAB)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def make_adapter(folder: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = {}
    for layer in range(LAYERS):
        for module, (out_size, in_size) in _SHAPES.items():
            if module.rsplit(".", 1)[1] in TARGETS:
                name = f"base_model.model.model.layers.{layer}.{module}"
                tensors[f"{name}.lora_A.weight"] = rng.standard_normal((RANK, in_size)).astype(np.float32)
                tensors[f"{name}.lora_B.weight"] = rng.standard_normal((out_size, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def a_probe() -> Probe:
    case = ProbeCase(
        prompt_token_ids=[1, 2], token_ids=[3, 4, 5], logprobs=[-1.0, -2.0, -0.5], reference_logprobs=[-1.5, -1.7, -1.1]
    )
    return Probe(cases=[case], tolerance_nats=0.05)


def adapter_draft(base: Path, number: int = 1, **changes: Any) -> Draft:
    fields: dict[str, Any] = {
        "number": number,
        "kind": PolicyKind.ADAPTER,
        "base_digest": model_digest(base),
        "tokenizer_digest": tokenizer_digest(base),
        "probe": a_probe(),
        "lora": LoraShape(rank=RANK, alpha=ALPHA, target_modules=TARGETS),
        "training": {"run": "run-1", "seed": 7},
    }
    return Draft(**(fields | changes))


def full_draft(base: Path, number: int = 1, **changes: Any) -> Draft:
    return adapter_draft(base, number, **({"kind": PolicyKind.FULL, "lora": None} | changes))


def edit_tensors(path: Path, edit: Any) -> None:
    tensors = dict(load_file(path))
    edit(tensors)
    save_file(tensors, path)


def shapes(base: Path) -> BaseShapes:
    return base_shapes(base)


def publish_adapter(base: Path, root: Path, scratch: Path, number: int = 1, seed: int = 0) -> Published:
    staging = make_adapter(scratch / f"staging-{number}-{seed}", seed)
    return publish(staging, adapter_draft(base, number), root)


def publish_full(base: Path, root: Path, scratch: Path, number: int = 1, seed: int = 1) -> Published:
    staging = make_model(scratch / f"full-{number}-{seed}", seed)
    return publish(staging, full_draft(base, number), root)
