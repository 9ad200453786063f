"""From trained matrices to a published policy folder, with the probe that proves it in an engine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deploy.artifacts import Published, publish
from deploy.digests import base_shapes
from deploy.manifest import Draft, LoraShape, Probe, ProbeCase
from feedback.schema import PolicyKind
from trainer.backbone import ADAPTED, Backbone
from trainer.logprobs import score_logprobs
from trainer.lora import LoraAdapter
from trainer.sampler import Rollout
from trainer.trainable import Trainable

PROBE_CASES = 6
PROBE_QUESTIONS = (
    "Hello!",
    "How are you today?",
    "What can you do for me?",
    "Where is my order?",
    "That did not work. What now?",
    "Tell me something interesting.",
    "Thank you very much.",
    "你好！",
    "请问，你能帮我吗？",
    "谢谢你，再见。",
)
"""What a probe asks. Never what people asked: the manifest is part of what is served, copied and kept."""
PROBE_REPLIES = 4
"""To each question; the probe takes the most telling ones."""
PROBE_TOLERANCE_NATS = 0.05  # bf16 in two orders of summation stays below 0.02 on average
NOT_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")


@torch.no_grad()
def make_probe(backbone: Backbone, weights: dict[str, Tensor], rollouts: Sequence[Rollout]) -> Probe:
    """Logprobs at temperature 1 of a few replies, under the policy and under the backbone alone.

    The replies are those on which the two differ most per token, so that a missing adapter cannot hide.
    """
    prompts, replies = [r.prompt for r in rollouts], [r.reply for r in rollouts]
    policy_BR = score_logprobs(backbone, prompts, replies, 1.0, weights)
    reference_BR = score_logprobs(backbone, prompts, replies, 1.0)
    lengths_B = torch.tensor([len(reply) for reply in replies])
    gap_B = (policy_BR - reference_BR).abs().sum(1) / lengths_B
    chosen = torch.argsort(gap_B, descending=True, stable=True)[:PROBE_CASES].tolist()
    return Probe(
        cases=[
            ProbeCase(
                prompt_token_ids=rollouts[row].prompt,
                token_ids=rollouts[row].reply,
                logprobs=policy_BR[row, : len(rollouts[row].reply)].tolist(),
                reference_logprobs=reference_BR[row, : len(rollouts[row].reply)].tolist(),
            )
            for row in chosen
        ],
        tolerance_nats=PROBE_TOLERANCE_NATS,
    )


def publish_policy(
    *,
    kind: PolicyKind,
    number: int,
    base_folder: Path,
    backbone: Backbone,
    policy: Trainable,
    rollouts: Sequence[Rollout],
    training: dict[str, Any],
    policies_folder: Path,
) -> Published:
    """Write the files, make the probe, publish. `policy` must already be rounded to what is served."""
    base = base_shapes(base_folder)
    with torch.no_grad():
        weights = policy.merged()
    staging = policies_folder / f".staging-{number}"
    shutil.rmtree(staging, ignore_errors=True)  # what a publisher that died with this number has left
    staging.mkdir(parents=True)
    try:
        adapter = policy if kind is PolicyKind.ADAPTER else None
        if adapter is not None:
            assert isinstance(adapter, LoraAdapter), "only low-rank matrices make an adapter"
            adapter.save_peft(staging, base_name=base.digest)
        else:
            state = {name: tensor.contiguous() for name, tensor in backbone.merged_state(weights).items()}
            save_file(state, staging / "model.safetensors", metadata={"format": "pt"})
            for pattern in NOT_WEIGHTS:
                for path in base_folder.glob(pattern):
                    if path.name not in {"manifest.json", "build.json", "model.safetensors.index.json"}:
                        shutil.copyfile(path, staging / path.name)
        draft = Draft(
            number=number,
            kind=kind,
            base_digest=base.digest,
            tokenizer_digest=base.tokenizer_digest,
            probe=make_probe(backbone, weights, rollouts),
            lora=LoraShape(
                rank=adapter.config.rank,
                alpha=adapter.config.alpha,
                target_modules=sorted({name.rsplit(".", 1)[-1] for name in ADAPTED}),
            )
            if adapter is not None
            else None,
            training=training,
        )
        return publish(staging, draft, policies_folder, base)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
