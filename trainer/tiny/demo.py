"""`kudos demo`: the whole loop before your eyes, on a fresh home folder, with the real server.

Simulated people chat, vote and choose over HTTP only. The trainer beside the server wakes by itself, trains and
publishes; the operator (this process) rolls the candidate out under live streams; fresh people then compare the new
policy with the first one, blind. Nothing here reaches into the server, the log or the trainer but by the calls that
everyone has.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from trainer.ended import clean_up_when_ended
from trainer.intervals import mean_interval
from trainer.tiny.crowd import Crowd, Live, keep_streaming, people

READY = re.compile(r"kudos is ready: (http://\S+)")
STREAMS = 32
CANARY_SHARE = 0.25


@dataclass(frozen=True)
class DemoConfig:
    taste: str
    seed: int
    rounds: int = 2
    raters: int = 60
    noise: float = 0.1
    contrary: float = 0.1
    votes_per_round: int = 1000
    pair_share: float = 0.7
    judges: int = 40
    comparisons_each: int = 6
    swap_seconds: float = 6.0


@dataclass
class Round:
    number: int
    votes: dict[str, int] = field(default_factory=dict)
    version: str | None = None
    accepted: bool = False
    refusals: list[str] = field(default_factory=list)
    win_rate: tuple[float, float, float] = (0.5, 0.0, 1.0)
    training_seconds: float = 0.0
    evaluation: dict[str, Any] = field(default_factory=dict)
    ppo: list[dict[str, float]] = field(default_factory=list)
    reward_model: dict[str, Any] = field(default_factory=dict)


@dataclass
class Story:
    """Everything that the report tells."""

    config: DemoConfig
    address: str = ""
    first: str = ""
    before: tuple[float, float, float] = (0.5, 0.0, 1.0)
    rounds: list[Round] = field(default_factory=list)
    swaps: list[Live] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        served = [each for each in self.rounds if each.accepted]
        after = served[-1].win_rate if served else self.before
        return {
            "taste": self.config.taste,
            "seed": self.config.seed,
            "votes": sum(sum(each.votes.values()) for each in self.rounds),
            "rounds": len(self.rounds),
            "win_rate_before": _rounded(self.before),
            "win_rate_after": _rounded(after),
            "win_rate_by_round": [_rounded(each.win_rate) for each in self.rounds],
            "accepted": [each.accepted for each in self.rounds],
            "kl_nats": round(served[-1].evaluation["kl_nats"], 3) if served else 0.0,
            "streams_finished": sum(live.finished for live in self.swaps),
            "streams_failed": sum(len(live.failures) for live in self.swaps),
            "replies_of_two_policies": sum(live.mixed for live in self.swaps),
            "longest_gap_seconds": round(max((live.longest_gap_seconds for live in self.swaps), default=0.0), 3),
            "seconds": round(self.seconds, 1),
        }


def run_demo(*, rounds: int, taste: str, seed: int, home: Path | None) -> int:
    """Returns the exit status: 0 when a policy was served and no stream failed. The gate may refuse a
    later one, which is no better: that is no failure."""
    console = Console(stderr=True)
    home = home or Path(tempfile.mkdtemp(prefix="kudos-demo-"))
    if home.exists() and any(home.iterdir()):
        console.print(f"[red]{home} is not empty[/red]: the demo needs a fresh folder; name another with --home")
        return 2
    clean_up_when_ended()
    story = Story(DemoConfig(taste=taste, seed=seed, rounds=rounds))
    started = time.monotonic()
    console.print(
        f"[bold]kudos demo[/bold]: {rounds} rounds, people who secretly like [bold]{taste}[/bold]; home {home}"
    )
    with serving(home, story.config, console) as address:
        story.address = address
        key = (home / "operator.key").read_text().strip()
        asyncio.run(_play(story, key, console))
    story.seconds = time.monotonic() - started
    summary = story.summary()
    console.print(f"report: {tell(story, home)}")
    print(json.dumps(summary), flush=True)
    return 0 if any(summary["accepted"]) and not summary["streams_failed"] else 1


def tell(story: Story, home: Path) -> Path:
    """Write demo.json, which holds everything, and the report; returns the report's path."""
    from trainer.tiny.demo_report import write_demo_report

    (home / "demo.json").write_text(json.dumps(asdict(story), indent=1))
    write_demo_report(home / "demo.html", story)
    return home / "demo.html"


@contextmanager
def serving(
    home: Path, config: DemoConfig, console: Console, settings: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`kudos up` on a port of the system's choice; ended by its id."""
    home.mkdir(parents=True, exist_ok=True)
    training = home / "training.json"
    training.write_text(json.dumps({"seed": config.seed}))
    environment = {
        **os.environ,
        "KUDOS_HOME": str(home),
        "KUDOS_PORT": "0",
        "KUDOS_BURST_VOTES_PER_MINUTE": "0",  # simulated people vote as fast as a machine
        "KUDOS_TRAIN_AFTER_VOTES": str(config.votes_per_round),
        "KUDOS_TRAIN_CONFIG": str(training),
        "KUDOS_TRAIN_POLL_SECONDS": "1",
        **(settings or {}),
    }
    log = home / "up.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "kudos", "up"], stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        try:
            with console.status("starting the server"):
                yield _address(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        found = READY.search(line.decode(errors="replace"))
        if found:
            return found.group(1)
    raise RuntimeError(f"the server did not start; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")


async def _play(story: Story, key: str, console: Console) -> None:
    config = story.config
    crowd = Crowd(story.address, key)
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with bars:
            story.first = (await crowd.operate("GET", "/v1/status"))["policy"]["version"]
            story.before = await _judge(crowd, story, story.first, 0, bars)
            console.print(f"before: {_shown(story.before)} (the first policy against itself)", highlight=False)
            for number in range(1, config.rounds + 1):
                current = Round(number)
                story.rounds.append(current)
                await _round(crowd, story, current, bars, console)
    finally:
        await crowd.close()


async def _round(crowd: Crowd, story: Story, current: Round, bars: Progress, console: Console) -> None:
    config, number = story.config, current.number

    # 1. People chat and vote.
    known = {run["id"] for run in await _runs(crowd)}
    persons = people(
        config.taste,
        count=config.raters,
        seed=100 * config.seed + number,
        noise=config.noise,
        contrary=config.contrary,
        prompts_each=-(-2 * config.votes_per_round // config.raters),
    )
    task = bars.add_task(f"round {number}: people chat and vote", total=config.votes_per_round, note="")
    ballots = await crowd.vote(
        persons,
        votes=config.votes_per_round,
        pair_share=config.pair_share,
        seed=config.seed + number,
        on_vote=lambda b: bars.update(task, completed=b.votes, note=_counts(b.counts)),
    )
    current.votes = dict(ballots.counts)
    console.print(f"round {number}: {ballots.votes} votes: {_counts(ballots.counts)}", highlight=False)

    # 2. The trainer wakes by itself.
    run = await _trained(crowd, known, bars, f"round {number}: training")
    current.training_seconds = run["seconds"]
    current.reward_model = run["metrics"]["reward_model"]
    current.evaluation, current.ppo = run["metrics"]["evaluation"], run["metrics"]["ppo"]
    current.version = run["policy_version"]
    policy = await crowd.operate("GET", f"/v1/policies/{current.version}")
    current.accepted = policy["state"] == "accepted"
    current.refusals = policy["refusals"]
    accuracy = current.reward_model
    console.print(
        f"round {number}: {current.version} is {policy['state']} after {current.training_seconds:.0f} s; reward model "
        f"{accuracy['accuracy']:.2f} [{accuracy['lower']:.2f}, {accuracy['upper']:.2f}], "
        f"KL {current.evaluation['kl_nats']:.2f} nats, win rate by it {current.evaluation['win_rate']:.2f}",
        highlight=False,
    )
    if not current.accepted:
        for refusal in current.refusals:
            console.print(f"  {refusal}")
        return

    # 3. The candidate goes live under open streams.
    live = await _roll_out(crowd, config, current.version, bars, number)
    story.swaps.append(live)
    console.print(
        f"round {number}: rolled out under {STREAMS} streams: {live.finished} replies, {len(live.failures)} failed, "
        f"longest gap {live.longest_gap_seconds:.3f} s",
        highlight=False,
    )
    for failure in live.failures[:3]:
        console.print(f"  {failure}")

    # 4. Fresh people compare it with the first policy, blind.
    current.win_rate = await _judge(crowd, story, current.version, number, bars)
    console.print(f"round {number}: {_shown(current.win_rate)} over the first policy", highlight=False)


async def _judge(crowd: Crowd, story: Story, version: str, number: int, bars: Progress) -> tuple[float, float, float]:
    """Win rate over the first policy by people who never voted before, with an interval over people."""
    config = story.config
    judges = people(
        config.taste,
        count=config.judges,
        seed=50_000 + 100 * config.seed + number,
        noise=0.0,
        contrary=0.0,
        prompts_each=config.comparisons_each,
    )
    task = bars.add_task(
        f"round {number}: fresh people compare", total=config.judges * config.comparisons_each, note="blind"
    )
    await crowd.keep_from_training(judges)
    await crowd.operate("PUT", "/v1/matchup", {"first_version": story.first, "second_version": version})
    results = await crowd.compare(judges, story.first, version, lambda done: bars.update(task, completed=done))
    await crowd.operate("PUT", "/v1/matchup", {"first_version": None, "second_version": None})
    return mean_interval([sum(scores) / len(scores) for scores in results.values()])


async def _roll_out(crowd: Crowd, config: DemoConfig, version: str, bars: Progress, number: int) -> Live:
    persons = people(
        config.taste,
        count=STREAMS,
        seed=80_000 + 100 * config.seed + number,
        noise=0.0,
        contrary=0.0,
        prompts_each=8,
    )
    live, done = Live(), asyncio.Event()
    steps = bars.add_task(f"round {number}: rollout under {STREAMS} streams", total=3, note="")
    streaming = asyncio.create_task(keep_streaming(crowd, persons, live, done))
    try:
        await asyncio.sleep(config.swap_seconds / 3)
        await crowd.operate("POST", "/v1/rollouts", {"version": version, "share": CANARY_SHARE})
        bars.update(steps, completed=1, note=f"canary at {CANARY_SHARE:.0%}")
        await _seen(live, version)
        await asyncio.sleep(config.swap_seconds / 3)
        await crowd.operate("POST", "/v1/rollouts/current/promote", {})
        bars.update(steps, completed=2, note="promoted")
        await _only(crowd, version)
        await asyncio.sleep(config.swap_seconds / 3)
    finally:
        done.set()
        await streaming
    bars.update(steps, completed=3, note=f"{live.finished} replies")
    return live


async def _seen(live: Live, version: str, timeout_seconds: float = 30.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while version not in live.versions:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.1)


async def _only(crowd: Crowd, version: str, timeout_seconds: float = 30.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while (await crowd.operate("GET", "/v1/status"))["policy"]["version"] != version:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)


async def _runs(crowd: Crowd) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = (await crowd.operate("GET", "/v1/training/runs"))["data"]
    return runs


async def _trained(crowd: Crowd, known: set[str], bars: Progress, title: str) -> dict[str, Any]:
    """Wait for the next run to end. Raises when it fails, or when none starts within a minute."""
    task = bars.add_task(title, total=1.0, note="waking")
    started = time.monotonic()
    while True:
        fresh = [run for run in await _runs(crowd) if run["id"] not in known]
        if fresh:
            run = fresh[0]
            bars.update(task, completed=run["progress"], note=f"{run['stage']}: {run['message']}")
            if run["state"] == "succeeded":
                whole = await crowd.operate("GET", f"/v1/training/runs/{run['id']}")
                return {**whole, "seconds": time.monotonic() - started}
            if run["state"] == "failed":
                raise RuntimeError(f"training failed: {run['error']}")
        elif time.monotonic() - started > 60:
            raise RuntimeError("no training run has started within a minute of the votes")
        await asyncio.sleep(1.0)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _shown(interval: tuple[float, float, float]) -> str:
    return f"win rate {interval[0]:.3f} [{interval[1]:.3f}, {interval[2]:.3f}]"


def _rounded(interval: tuple[float, float, float]) -> list[float]:
    return [round(value, 4) for value in interval]
