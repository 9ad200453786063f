"""What an exchange of policies costs those who are reading: real server, random policies, open streams.

Adapters are swapped for one another, full checkpoints too, and an adapter is folded into the base's weights, in turn
with the plain base and the adapter beside it. While adapters are swapped a matchup of the base with itself keeps the
base wanted, so that nothing is folded then.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import tempfile
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.status import Status

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
from trainer.tiny.crowd import Crowd, Live, Person, Refused, keep_streaming, people
from trainer.tiny.demo import DemoConfig, serving
from trainer.tiny.dialogues import make_dialogues
from trainer.tokens import encode_reply, load_tokenizer, render_prompt

WARM_SECONDS = 3.0
PAUSE_SECONDS = 0.5  # after a swap; what it does to streams in this time is counted for it
WINDOW_SECONDS = 10.0  # of one measurement of throughput
WARM_SWAPS = 4  # before memory is looked at
MEMORY_EVERY_SWAPS = 25
SPREAD = 0.005  # of B's entries: another policy, whose replies still are the world's
LONG_PROMPT_WORDS = 120
SETTINGS = {"KUDOS_FOLD_AFTER_SECONDS": "0.5", "KUDOS_FOLD_WAIT_SECONDS": "8"}
_CACHE = re.compile(
    r'^vllm:cache_config_info\{(?=.*block_size="(?P<size>\d+)")(?=.*num_gpu_blocks="(?P<blocks>\d+)")', re.MULTILINE
)
_GENERATED = re.compile(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)$", re.MULTILINE)


class Gaps:
    """Seconds between two chunks of one stream, with the moment at which each gap ended."""

    def __init__(self) -> None:
        # Not lists, whose every item Python's garbage collection looks at: 50 ms, in which nothing was measured.
        self.seconds, self.ended_at = array("d"), array("d")

    def add(self, at: float, seconds: float) -> None:
        self.ended_at.append(at)
        self.seconds.append(seconds)

    def within(self, *spans: tuple[float, float]) -> dict[str, float]:
        ended_at, seconds = np.array(self.ended_at), np.array(self.seconds)
        chosen = np.concatenate([seconds[(ended_at > start) & (ended_at <= stop)] for start, stop in spans])
        p50, p99 = np.quantile(chosen, [0.5, 0.99])
        return {"p50": round(float(p50), 4), "p99": round(float(p99), 4), "longest": round(float(chosen.max()), 4)}


class Bench:
    """One server, its operator, and streams that never stop."""

    def __init__(self, crowd: Crowd, status: Status) -> None:
        self.crowd, self.status = crowd, status
        self.gaps, self.live = Gaps(), Live()

    async def adapters(self, versions: list[str], swaps: int, quiet_seconds: float) -> dict[str, Any]:
        """Each swap loads and proves the other adapter, hands everybody over to it, and drops the one before.

        Pairs of figures are those of the swaps, and of times as long in which nothing was swapped.
        """
        base = await self.quiet(quiet_seconds, "the base, left alone")
        await self.swap(versions[1])
        self.status.update("the KV cache is filled, so that no memory is new to it")
        await self.fill_cache()
        for number in range(WARM_SWAPS):
            await self.swap(versions[number % 2])
        replies, memory = self.live.finished, [memory_mib()]
        swapping, still = list[tuple[float, float]](), list[tuple[float, float]]()
        for number in range(swaps):
            self.status.update(f"adapter swap {number + 1} of {swaps}")
            began, ended = await self.swap(versions[number % 2])
            await asyncio.sleep(ended - began)  # as long again with nothing going on: the machine is the same
            swapping.append((began, ended))
            still.append((ended, time.perf_counter()))
            if (number + 1) % MEMORY_EVERY_SWAPS == 0:
                memory.append(memory_mib())
        quiet = self.gaps.within(*still)
        longest, longest_still = ([self.gaps.within(span)["longest"] for span in spans] for spans in (swapping, still))
        return {
            "swaps": swaps,
            "replies": self.live.finished - replies,
            "base_seconds": base,
            "adapter_seconds": quiet,
            "swapping_seconds": self.gaps.within(*swapping),
            "longest_over_p99": {
                "median": [round(median(each) / quiet["p99"], 2) for each in (longest, longest_still)],
                "longest": [round(max(each) / quiet["p99"], 2) for each in (longest, longest_still)],
                "within_twice": [sum(gap <= 2 * quiet["p99"] for gap in each) for each in (longest, longest_still)],
            },
            "memory_mib": {name: [each.get(name) for each in memory] for name in memory[0]},
        }

    async def full(self, versions: list[str], swaps: int) -> dict[str, Any]:
        spans = []
        for number in range(swaps):
            self.status.update(f"full swap {number + 1} of {swaps}")
            spans.append(await self.swap(versions[number % 2]))
        longest = [self.gaps.within(span)["longest"] for span in spans]
        return {"swaps": swaps, "longest_gap_seconds": longest}

    async def folds(self, version: str, rounds: int) -> dict[str, Any]:
        """Tokens a second of base, adapter on it and adapter in it, in turn. Ratios: their median, then each."""
        rates: dict[str, list[float]] = {"base": [], "adapter": [], "folded": []}
        swapped, waits = list[float](), list[float]()
        for number in range(rounds):
            self.status.update(f"fold {number + 1} of {rounds}")
            rates["base"].append(await self.tokens_a_second())
            await self.keep_apart(apart=True)
            await self.swap(version)
            rates["adapter"].append(await self.tokens_a_second())
            began = time.perf_counter()
            await self.keep_apart(apart=False)
            await self.until("/v1/policies", lambda body: body["wanted"]["folded"] == version)
            await asyncio.sleep(PAUSE_SECONDS)
            ended = time.perf_counter()
            swapped.append(self.gaps.within((began, ended))["longest"])
            waits.append(round(max(wait for at, wait in self.live.first_waits if began < at <= ended), 3))
            rates["folded"].append(await self.tokens_a_second())
            await self.to_base()
        rates["base"].append(await self.tokens_a_second())
        bases = [(before + after) / 2 for before, after in pairwise(rates["base"])]  # a machine drifts

        def over_base(name: str) -> list[float]:
            return [round(rate / base, 3) for rate, base in zip(rates[name], bases, strict=True)]

        return {
            "rounds": rounds,
            "tokens_per_second": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
            "adapter_over_base": [round(median(over_base("adapter")), 3), *over_base("adapter")],
            "folded_over_base": [round(median(over_base("folded")), 3), *over_base("folded")],
            "longest_gap_seconds": swapped,
            "longest_wait_for_a_first_token_seconds": waits,
        }

    async def swap(self, version: str) -> tuple[float, float]:
        """To everybody, by an operator's hand; from when until when."""
        began = time.perf_counter()
        await self.crowd.operate("POST", "/v1/rollouts", {"version": version, "share": 1.0})
        await self.until("/v1/policies", lambda body: body["wanted"]["serving"] == version)
        await self.crowd.operate("POST", "/v1/rollouts/current/promote", {})
        await self.until("/v1/policies", lambda body: len(body["wanted"]["holds"]) <= 2)
        await asyncio.sleep(PAUSE_SECONDS)
        return began, time.perf_counter()

    async def fill_cache(self) -> None:
        """The engine takes every block of its cache once before it takes one again, and the system gives memory when it
        is first touched."""
        found = _CACHE.search(await self.crowd.text("/metrics"))
        assert found, "the engine says how large its cache is"
        left, at = float(found["blocks"]) * float(found["size"]), count()

        async def fill() -> None:
            nonlocal left
            while left > 0:
                words = " ".join(f"{next(at):x}" for _ in range(LONG_PROMPT_WORDS))
                body = {"messages": [{"role": "user", "content": words}], "max_tokens": 1}
                answer = await self.crowd.operate("POST", "/v1/chat/completions", body)
                left -= answer["usage"]["prompt_tokens"]

        await asyncio.gather(fill(), fill())

    async def to_base(self) -> None:
        """Back over every policy that was promoted."""
        while (await self.crowd.operate("GET", "/v1/policies"))["wanted"]["stable"] != await self.base():
            with suppress(Refused):  # there may be none left: what is wanted is looked at twice a second
                await self.crowd.operate("POST", "/v1/rollouts/current/rollback", {})
        await self.until("/v1/policies", lambda body: body["wanted"]["serving"] == body["wanted"]["stable"])
        await asyncio.sleep(PAUSE_SECONDS)

    async def base(self) -> str:
        rows = (await self.crowd.operate("GET", "/v1/policies"))["data"]
        return str(next(row["version"] for row in rows if row["kind"] == PolicyKind.BASE))

    async def quiet(self, seconds: float, what: str) -> dict[str, float]:
        self.status.update(what)
        await asyncio.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        return self.gaps.within((began, time.perf_counter()))

    async def keep_apart(self, *, apart: bool) -> None:
        base = await self.base()
        body = {"first_version": base, "second_version": base} if apart else {}
        await self.crowd.operate("PUT", "/v1/matchup", body)

    async def tokens_a_second(self) -> float:
        await asyncio.sleep(PAUSE_SECONDS)
        began, tokens = time.perf_counter(), await self.generated()
        await asyncio.sleep(WINDOW_SECONDS)
        return (await self.generated() - tokens) / (time.perf_counter() - began)

    async def generated(self) -> float:
        found = _GENERATED.search(await self.crowd.text("/metrics"))
        assert found, "the engine counts its tokens"
        return float(found[1])

    async def until(self, path: str, holds: Callable[[Any], bool], timeout_seconds: float = 60.0) -> None:
        async with asyncio.timeout(timeout_seconds):
            while not holds(await self.crowd.operate("GET", path)):  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.1)


def measure(*, swaps: int, streams: int, quiet_seconds: float, full: int, folds: int) -> dict[str, Any]:
    """One server, first left alone, then exchanged under its readers; returns the figures."""
    console = Console(stderr=True)
    home = Path(tempfile.mkdtemp(prefix="kudos-swap-"))
    with serving(home, DemoConfig("none", 0, votes_per_round=10**9), console, settings=SETTINGS) as address:
        adapters = [publish_adapter(home, seed, partial(_random, seed=seed)) for seed in range(2)]
        whole = [publish_adapter(home, seed, partial(_random, seed=seed), PolicyKind.FULL) for seed in range(2, 4)]
        # Replies of one length, whoever gives them: a short one has more prompt to each of its tokens.
        unchanged = publish_adapter(home, 4, lambda backbone: LoraAdapter(backbone, LoraConfig(), 4))
        key = (home / "operator.key").read_text().strip()
        gc.collect()
        gc.disable()  # a collection stops this process for as long as a swap may stop a stream
        try:
            return asyncio.run(
                _all(address, key, adapters, whole, unchanged, swaps, streams, quiet_seconds, full, folds)
            )
        finally:
            gc.enable()


async def _all(  # noqa: PLR0917 -- one caller
    address: str,
    key: str,
    adapters: list[str],
    whole: list[str],
    unchanged: str,
    swaps: int,
    streams: int,
    quiet_seconds: float,
    full: int,
    folds: int,
) -> dict[str, Any]:
    crowd, done = Crowd(address, key), asyncio.Event()
    persons = english(people("none", count=streams, seed=9, noise=0.0, contrary=0.0, prompts_each=32))
    found: dict[str, Any] = {"streams": streams}
    with Console(stderr=True).status("streams begin") as status:
        bench = Bench(crowd, status)
        streaming = asyncio.create_task(keep_streaming(crowd, persons, bench.live, done, bench.gaps.add))
        try:
            await asyncio.sleep(WARM_SECONDS)
            await bench.keep_apart(apart=True)
            if swaps:
                found["adapters"] = await bench.adapters(adapters, swaps, quiet_seconds)
            if full:
                await bench.to_base()
                found["full"] = await bench.full(whole, full)
            if folds:
                await bench.to_base()
                await bench.keep_apart(apart=False)
                found["fold"] = await bench.folds(unchanged, folds)
        finally:
            done.set()
            await streaming
            await crowd.close()
    live = bench.live
    return {**found, "replies": live.finished, "failed": len(live.failures), "replies_of_two_policies": live.mixed}


def english(persons: list[Person]) -> list[Person]:
    """A token of English has text of its own, so that a gap between two chunks is one between two tokens: a Chinese
    character may take three of them."""
    return [
        replace(each, prompts=[prompt for prompt in each.prompts if prompt.ask.language == "en"]) for each in persons
    ]


def memory_mib() -> dict[str, int]:
    """Memory of its own that each process below this one has, by what it does."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: dict[str, int] = {}
    pending = [(child, "") for child, parent in parents.items() if parent == os.getpid()]
    while pending:
        process, above = pending.pop()
        try:
            lines = (Path("/proc") / str(process) / "status").read_text().splitlines()
            words = (Path("/proc") / str(process) / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = (
            "trainer" if "trainer" in words else "up" if "up" in words else "engine" if above == "server" else "server"
        )
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        found[name] = found.get(name, 0) + int(fields["RssAnon"].split()[0]) // 1024
        pending += [(child, name) for child, parent in parents.items() if parent == process]
    return found


def _random(backbone: Backbone, seed: int) -> LoraAdapter:
    adapter = LoraAdapter(backbone, LoraConfig(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.b.values():
            parameter.normal_(0, SPREAD, generator=generator)
    return adapter


def publish_adapter(
    home: Path, seed: int, make: Callable[[Backbone], LoraAdapter], kind: PolicyKind = PolicyKind.ADAPTER
) -> str:
    """An adapter of the built-in model, or the model with it in its weights, published and accepted like any other."""
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
            for each in make_dialogues(seed, 64, "held_out")
            if len(each.prompt) == 1  # a question and no conversation, as the trainer's probe asks it
            for reply in [encode_reply(tokenizer, each.reply)]
        ]
        published = publish_policy(
            kind=kind,
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
