"""How long a stream stands still while policies are swapped under it: real server, random adapters, open streams."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from deploy import policies
from deploy.gate import Verdict
from feedback.schema import PolicyKind
from feedback.settings import Settings
from feedback.store import open_store
from trainer.backbone import Backbone
from trainer.config import LoraConfig
from trainer.lora import LoraAdapter
from trainer.publication import publish_policy
from trainer.sampler import Rollout
from trainer.tiny.build import MODEL_FOLDER
from trainer.tiny.crowd import Crowd, Live, keep_streaming, people
from trainer.tiny.demo import DemoConfig, serving
from trainer.tiny.dialogues import make_dialogues
from trainer.tokens import encode_reply, load_tokenizer, render_prompt

WARM_SECONDS = 3.0
PAUSE_SECONDS = 1.0  # between two swaps


@dataclass
class Gaps:
    """Seconds between two chunks of one stream, with the moment at which each gap ended."""

    seconds: list[float] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)

    def add(self, at: float, seconds: float) -> None:
        self.ended_at.append(at)
        self.seconds.append(seconds)

    def between(self, start: float, stop: float) -> dict[str, float]:
        ended_at, seconds = np.array(self.ended_at), np.array(self.seconds)
        chosen = seconds[(ended_at > start) & (ended_at <= stop)]
        p50, p99 = np.quantile(chosen, [0.5, 0.99])
        return {"p50": round(float(p50), 4), "p99": round(float(p99), 4), "longest": round(float(chosen.max()), 4)}


def measure(*, swaps: int, streams: int, quiet_seconds: float) -> dict[str, Any]:
    """One server, first left alone, then swapped `swaps` times; returns the figures."""
    console = Console(stderr=True)
    home = Path(tempfile.mkdtemp(prefix="kudos-swap-"))
    with serving(home, DemoConfig("none", 0, votes_per_round=10**9), console) as address:
        versions = [publish_adapter(home, seed, partial(_random, seed=seed)) for seed in range(2)]
        key = (home / "operator.key").read_text().strip()
        return asyncio.run(_swap(address, key, versions, swaps, streams, quiet_seconds, console))


async def _swap(  # noqa: PLR0917 -- one caller
    address: str, key: str, versions: list[str], swaps: int, streams: int, quiet_seconds: float, console: Console
) -> dict[str, Any]:
    crowd = Crowd(address, key)
    persons = people("none", count=streams, seed=9, noise=0.0, contrary=0.0, prompts_each=16)
    live, gaps, done = Live(), Gaps(), asyncio.Event()
    streaming = asyncio.create_task(keep_streaming(crowd, persons, live, done, gaps.add))
    try:
        await asyncio.sleep(WARM_SECONDS)
        quiet_from = time.perf_counter()
        with console.status(f"{streams} streams, left alone"):
            await asyncio.sleep(quiet_seconds)
        swaps_from = time.perf_counter()
        for number in range(swaps):
            version = versions[number % 2]
            with console.status(f"swap {number + 1} of {swaps}"):
                await crowd.operate("POST", "/v1/rollouts", {"version": version, "share": 0.5})
                await _until(crowd, "/v1/policies", lambda body, v=version: v in body["wanted"]["holds"])
                await crowd.operate("POST", "/v1/rollouts/current/promote", {})
                await _until(crowd, "/v1/status", lambda body, v=version: body["policy"]["version"] == v)
                await asyncio.sleep(PAUSE_SECONDS)
        ended = time.perf_counter()
    finally:
        done.set()
        await streaming
        await crowd.close()
    quiet, swapping = gaps.between(quiet_from, swaps_from), gaps.between(swaps_from, ended)
    return {
        "streams": streams,
        "swaps": swaps,
        "replies": live.finished,
        "failed": len(live.failures),
        "replies_of_two_policies": live.mixed,
        "quiet_seconds": quiet,
        "swapping_seconds": swapping,
        "longest_swapping_over_p99_quiet": round(swapping["longest"] / quiet["p99"], 2),
    }


async def _until(crowd: Crowd, path: str, holds: Any, timeout_seconds: float = 60.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not holds(await crowd.operate("GET", path)):  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)


def _random(backbone: Backbone, seed: int) -> LoraAdapter:
    adapter = LoraAdapter(backbone, LoraConfig(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, 0.02, generator=generator)
    return adapter


def publish_adapter(home: Path, seed: int, make: Callable[[Backbone], LoraAdapter]) -> str:
    """An adapter of the built-in model, published and accepted like any other."""
    store = open_store(Settings(home=home))
    try:
        with store.read() as session:
            base = next(row for row in policies.everything(session) if row.kind == PolicyKind.BASE)
            number = policies.next_number(session)
        tokenizer, backbone = load_tokenizer(MODEL_FOLDER), Backbone.load(MODEL_FOLDER)
        adapter = make(backbone)
        adapter.round_to_served()
        rollouts = [
            Rollout(render_prompt(tokenizer, each.prompt), reply, [0.0] * len(reply), True)
            for each in make_dialogues(seed, 32, "held_out")
            for reply in [encode_reply(tokenizer, each.reply)]
        ]
        published = publish_policy(
            kind=PolicyKind.ADAPTER,
            number=number,
            base_folder=MODEL_FOLDER,
            backbone=backbone,
            policy=adapter,
            rollouts=rollouts,
            training={"seed": seed},
            policies_folder=home / "policies",
        )
        with store.write() as session:
            policies.register(session, published, parent=base.version, verdict=Verdict(True, [], []))
        return published.version
    finally:
        store.close()
