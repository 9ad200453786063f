"""Policies for a running server to take: random adapters and checkpoints, with probes computed by torch."""

import os
from pathlib import Path

import torch

from deploy import policies
from deploy.artifacts import Published
from deploy.gate import Verdict
from feedback.schema import PolicyKind
from server.prompts import Prompts
from tests.server.conftest import Running
from trainer.backbone import Backbone
from trainer.config import LoraConfig
from trainer.lora import LoraAdapter
from trainer.publication import publish_policy
from trainer.sampler import Rollout

LORA = LoraConfig(rank=8, alpha=16.0)
_TEXTS = ["Hello!", "What are your opening hours?", "你好，请问几点开门？", "What is 3 plus 4?"]


def publish(
    running: Running, kind: PolicyKind = PolicyKind.ADAPTER, *, seed: int = 1, size: float = 0.02, accepted: bool = True
) -> Published:
    """A policy that differs from the running model by random matrices of the given size, registered like any other."""
    with running.store.read() as session:
        base = next(row for row in policies.everything(session) if row.kind == PolicyKind.BASE)
        number = policies.next_number(session)
    folder = Path(base.path)
    backbone = Backbone.load(folder)
    adapter = LoraAdapter(backbone, LORA, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, size, generator=generator)
    adapter.round_to_served()
    prompts = Prompts(folder)
    rollouts = [
        Rollout(
            prompts.render([{"role": "user", "content": text}]),
            list(range(300 + 7 * at, 316 + 7 * at)),
            [0.0] * 16,
            True,
        )
        for at, text in enumerate(_TEXTS)
    ]
    published = publish_policy(
        kind=kind,
        number=number,
        base_folder=folder,
        backbone=backbone,
        policy=adapter,
        rollouts=rollouts,
        training={"run_id": f"test-{seed}"},
        policies_folder=running.home / "policies",
    )
    with running.store.write() as session:
        policies.register(
            session,
            published,
            parent=base.version,
            verdict=Verdict(accepted=accepted, refusals=[] if accepted else ["for the test"], flags=[]),
        )
    return published


def damage(path: Path, change: str) -> None:
    """Published files are read-only; whoever damages one is not stopped by that."""
    os.chmod(path, 0o644)
    body = bytearray(path.read_bytes())
    if change == "truncate":
        body = body[: len(body) // 2]
    elif change == "flip":
        body[-5] ^= 0x40
    path.write_bytes(body)
