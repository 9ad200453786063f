"""Rollouts that are left to themselves, on the real server under open streams: bad policies, and one that is fine.

The bad ones are made on purpose: one has learned to say nothing, one to be rude. Simulated people chat, vote and
compare all the while; nobody tells the server which policy is which. The fine one begins in shadow. (Weights of mere
noise meet nobody: the probe refuses them.)
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deploy.rollout import last_event
from feedback.schema import Rollout
from feedback.settings import Settings
from feedback.store import Store, open_store
from trainer.backbone import Backbone
from trainer.config import LoraConfig, SftConfig
from trainer.examples import Demonstration
from trainer.lora import LoraAdapter
from trainer.sft import imitate
from trainer.tiny.build import MODEL_FOLDER
from trainer.tiny.crowd import Crowd, Live, Person, keep_streaming, people
from trainer.tiny.demo import DemoConfig, serving
from trainer.tiny.dialogues import make_dialogues
from trainer.tiny.swap_bench import publish_adapter
from trainer.tokens import encode_reply, load_tokenizer, render_prompt

PEOPLE = 1200
CHUNK_VOTES = 40  # between two looks of the bench at the server
CHUNK_PEOPLE = 60
PAIR_SHARE = 0.3  # of votes
RUDE = "That is a stupid question. Go away."
BAD = ("empty", "rude")
PLAN = {
    "KUDOS_ROLLOUT_AUTOMATIC": "true",
    "KUDOS_ROLLOUT_LOOK_SECONDS": "1",
    "KUDOS_ROLLOUT_MIN_MINUTES": "0",
    "KUDOS_ROLLOUT_MIN_VOTES": "50",
    # Twice the defaults: thousands of votes are needed to show less of a policy that is as good as the other.
    "KUDOS_ROLLOUT_WIN_RATE_MARGIN": "0.1",
    "KUDOS_ROLLOUT_NET_VOTES_MARGIN": "0.2",
    "KUDOS_ROLLOUT_SHADOW_REPLIES": "60",
    "KUDOS_SHADOW_SHARE": "0.5",
    "KUDOS_SHADOW_BELOW_STREAMS": "1000",
}


def measure(*, streams: int, bad_votes: int, good_votes: int) -> dict[str, Any]:
    """One server; one rollout after another. Nobody touches a rollout once it has begun."""
    console = Console(stderr=True)
    home = Path(tempfile.mkdtemp(prefix="kudos-rollout-"))
    with console.status("making policies"):
        made = {name: _made(name) for name in (*BAD, "good")}
    with serving(home, DemoConfig("none", 0, votes_per_round=10**9), console, settings=PLAN) as address:
        versions = {name: publish_adapter(home, seed, policy) for seed, (name, policy) in enumerate(made.items())}
        key = (home / "operator.key").read_text().strip()
        store = open_store(Settings(home=home))
        try:
            return asyncio.run(_all(address, key, store, versions, streams, bad_votes, good_votes, console))
        finally:
            store.close()


def _made(name: str) -> Callable[[Backbone], LoraAdapter]:
    def make(backbone: Backbone) -> LoraAdapter:
        adapter = LoraAdapter(backbone, LoraConfig(), 0)
        generator = torch.Generator().manual_seed(0)
        if name == "good":  # hardly another policy, but one that the engine has to hold beside the base
            with torch.no_grad():
                for parameter in adapter.b.values():
                    parameter.normal_(0, 0.02, generator=generator)
            return adapter
        tokenizer = load_tokenizer(MODEL_FOLDER)
        reply = encode_reply(tokenizer, "" if name == "empty" else RUDE)
        lessons = [
            Demonstration(render_prompt(tokenizer, each.prompt), reply, 1.0) for each in make_dialogues(7, 192, "train")
        ]
        imitate(backbone, adapter, lessons, [], config=SftConfig(epochs=3, learning_rate=2e-3), seed=0)
        return adapter

    return make


async def _all(  # noqa: PLR0917 -- one caller
    address: str,
    key: str,
    store: Store,
    versions: dict[str, str],
    streams: int,
    bad_votes: int,
    good_votes: int,
    console: Console,
) -> dict[str, Any]:
    crowd, live, done = Crowd(address, key), Live(), asyncio.Event()
    watching = people("none", count=streams, seed=9, noise=0.0, contrary=0.0, prompts_each=16)
    voters = people("none", count=PEOPLE, seed=10, noise=0.05, contrary=0.0, prompts_each=8)
    groups = cycle([voters[at : at + CHUNK_PEOPLE] for at in range(0, PEOPLE, CHUNK_PEOPLE)])
    streaming = asyncio.create_task(keep_streaming(crowd, watching, live, done))
    rollouts = []
    try:
        for name, version in versions.items():
            limit = good_votes if name == "good" else bad_votes
            with console.status(f"{name}: {version}") as status:
                one = await _one(crowd, store, name, version, groups, limit, status.update)
            rollouts.append(one)
            console.print(f"{name}: {one['state']} after {one['votes']} votes, {one['seconds']} s: {one['reason']}")
    finally:
        done.set()
        await streaming
        await crowd.close()
    expected = all(one["state"] == ("promoted" if one["policy"] == "good" else "rolled_back") for one in rollouts)
    return {
        "streams": streams,
        "rollouts": rollouts,
        "as_expected": expected,
        "replies_streamed": live.finished,
        "streams_failed": len(live.failures),
        "replies_of_two_policies": live.mixed,
        "longest_gap_seconds": round(live.longest_gap_seconds, 3),
    }


async def _one(  # noqa: PLR0917 -- one caller
    crowd: Crowd,
    store: Store,
    name: str,
    version: str,
    groups: Iterator[list[Person]],
    most_votes: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """From its start until the server has decided, or too many votes were cast."""
    begun = await crowd.operate(
        "POST", "/v1/rollouts", {"version": version, **({"shadow": True} if name == "good" else {})}
    )
    started, votes, steps = time.monotonic(), 0, [[begun["state"], begun["share"], 0]]
    while votes < most_votes:
        ballots = await crowd.vote(next(groups), CHUNK_VOTES, PAIR_SHARE, votes, lambda ballots: None)
        votes += ballots.votes
        row = _stands(store, begun["id"])
        say(f"{name}: {row['state']} at {row['share']:.0%}, {votes} votes")
        if [row["state"], row["share"]] != steps[-1][:2]:
            steps.append([row["state"], row["share"], votes])
        if row["state"] in ("promoted", "rolled_back"):
            break
    else:
        await crowd.operate("POST", "/v1/rollouts/current/rollback", {"reason": "not decided in time"})
    return {
        "policy": name,
        "state": row["state"],
        "votes": votes,
        "seconds": round(time.monotonic() - started, 1),
        "steps": steps,
        "reason": row["reason"],
        "by": row["by"],
    }


def _stands(store: Store, rollout_id: int) -> dict[str, Any]:
    """How this rollout stands, from its row: once it is rolled back, another one is the current over HTTP."""
    with store.read() as session:
        row = session.get_one(Rollout, rollout_id)
        event = last_event(session, row)
        return {"state": row.state, "share": row.share, "reason": event.reason, "by": event.actor}
