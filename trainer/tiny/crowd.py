"""Simulated people who use the server as anybody would: over HTTP, and over HTTP alone.

They chat, give thumbs, choose between two replies, and keep streams open while policies are swapped. What they like
never leaves this process but as votes.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from trainer.tiny.raters import Prompt, Rater, prompts

MAX_TOKENS = 64


@dataclass
class Ballots:
    """What a crowd has said so far."""

    counts: Counter[str] = field(default_factory=Counter)

    @property
    def votes(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Person:
    name: str
    rater: Rater
    prompts: list[Prompt]


def people(taste: str, *, count: int, seed: int, noise: float, contrary: float, prompts_each: int) -> list[Person]:
    """`count` raters of one taste, a share of them contrary, each with things to say that nobody else has."""
    rng = random.Random(f"people:{taste}:{seed}")
    everything = prompts(seed, count * prompts_each)
    return [
        Person(
            name=f"person-{seed}-{index}",
            rater=Rater(taste, noise=noise, contrary=rng.random() < contrary, seed=seed * 1000 + index),
            prompts=everything[index * prompts_each : (index + 1) * prompts_each],
        )
        for index in range(count)
    ]


class Crowd:
    def __init__(self, address: str, key: str, *, parallel: int = 24) -> None:
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"authorization": f"Bearer {key}"},
            timeout=120.0,
            limits=httpx.Limits(max_connections=parallel + 80),
        )
        self._parallel = parallel

    async def close(self) -> None:
        await self._client.aclose()

    async def operate(self, method: str, path: str, body: Any = None) -> Any:
        """A call as the operator. Raises with the server's own message."""
        return _checked(await self._client.request(method, path, json=body))

    async def text(self, path: str) -> str:
        response = await self._client.get(path)
        response.raise_for_status()
        return response.text

    async def vote(
        self, crowd: list[Person], votes: int, pair_share: float, seed: int, on_vote: Callable[[Ballots], None]
    ) -> Ballots:
        """Chat and vote until `votes` votes are acknowledged: choices between two replies, and thumbs."""
        rng = random.Random(f"voting:{seed}")
        ballots = Ballots()
        turns = errands(crowd)

        async def work() -> None:
            while ballots.votes < votes:
                person, prompt = next(turns)
                if rng.random() < pair_share:
                    said = await self._choose(person, prompt)
                    ballots.counts[said["choice"]] += 1
                else:
                    thumb = await self._thumb(person, prompt)
                    if thumb is None:
                        continue
                    ballots.counts[thumb] += 1
                on_vote(ballots)

        await _together(work() for _ in range(self._parallel))
        return ballots

    async def compare(
        self, crowd: list[Person], old: str, new: str, on_choice: Callable[[int], None]
    ) -> dict[str, list[float]]:
        """Every prompt of every person, blind. Returns each person's results: 1 where `new` won, 0 lost, ½ otherwise.

        Where both are the same policy, the left side stands for `new`.
        """
        results: dict[str, list[float]] = {person.name: [] for person in crowd}
        errands = iter([(person, prompt) for person in crowd for prompt in person.prompts])
        done = 0

        async def work() -> None:
            nonlocal done
            for person, prompt in errands:
                said = await self._choose(person, prompt)
                sides = said["revealed"]
                if sorted(sides.values()) != sorted((old, new)):
                    raise RuntimeError(f"asked to compare {old} with {new}, and was shown {sides}")
                won = {"left": sides["left"], "right": sides["right"]}.get(said["choice"])
                if old == new:
                    score = {"left": 1.0, "right": 0.0}.get(said["choice"], 0.5)
                else:
                    score = 0.5 if won is None else float(won == new)
                results[person.name].append(score)
                done += 1
                on_choice(done)

        await _together(work() for _ in range(self._parallel))
        return results

    async def keep_from_training(self, crowd: list[Person]) -> None:
        """These people are the measuring instrument: their votes must not train anything."""
        for person in crowd:
            _checked(await self._client.put("/v1/me/consent", json={"consent": False}, headers=_as(person)))

    async def _choose(self, person: Person, prompt: Prompt) -> dict[str, Any]:
        body = {"messages": list(prompt.messages), "max_tokens": MAX_TOKENS}
        shown = _checked(await self._client.post("/v1/comparisons", json=body, headers=_as(person)))
        left, right = (shown[side]["choices"][0]["message"]["content"] for side in ("left", "right"))
        choice = person.rater.choose(prompt.messages, left, right)
        answer = await self._client.put(
            f"/v1/comparisons/{shown['id']}/choice", json={"choice": choice}, headers=_as(person)
        )
        return {"choice": choice, **_checked(answer)}

    async def _thumb(self, person: Person, prompt: Prompt) -> str | None:
        body = {"messages": list(prompt.messages), "max_tokens": MAX_TOKENS}
        reply = _checked(await self._client.post("/v1/chat/completions", json=body, headers=_as(person)))
        thumb = person.rater.thumb(prompt.messages, reply["choices"][0]["message"]["content"])
        if thumb is None:
            return None
        said = {"thumb": thumb.value, "reasons": list(thumb.reasons)}
        _checked(await self._client.put(f"/v1/replies/{reply['id']}/feedback", json=said, headers=_as(person)))
        return thumb.value

    async def stream(self, person: Person, prompt: Prompt) -> AsyncIterator[dict[str, Any]]:
        """The chunks of one streamed reply. Raises StreamFailed unless it ends as it should."""
        body = {"messages": list(prompt.messages), "stream": True, "max_tokens": MAX_TOKENS}
        finished = False
        async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=_as(person)) as response:
            if response.status_code != 200:
                raise StreamFailed(f"{response.status_code}: {(await response.aread()).decode()}")
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    if not finished:
                        raise StreamFailed("[DONE] without a finish_reason")
                    return
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise StreamFailed(chunk["error"]["message"])
                finished = finished or any(choice.get("finish_reason") for choice in chunk["choices"])
                yield chunk
        raise StreamFailed("the stream ended without [DONE]")


class StreamFailed(Exception):
    pass


class Refused(RuntimeError):
    """The server said no to a call; its own message."""


@dataclass
class Live:
    """What was seen on streams that were open all the time."""

    finished: int = 0
    failures: list[str] = field(default_factory=list)
    mixed: int = 0  # replies whose chunks named more than one policy
    longest_gap_seconds: float = 0.0
    first_waits: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds) of each reply's first token
    versions: dict[str, int] = field(default_factory=dict)  # replies of each policy


async def keep_streaming(
    crowd: Crowd,
    persons: list[Person],
    live: Live,
    until: asyncio.Event,
    on_gap: Callable[[float, float], None] = lambda at, seconds: None,
) -> None:
    """One stream per person, one after another, until told; `live` fills as they go.

    on_gap: is told when a token came, and how many seconds after the one before.
    """

    async def one(person: Person) -> None:
        turn = 0
        while not until.is_set():
            last, asked = None, time.perf_counter()
            seen = set()
            prompt = person.prompts[turn % len(person.prompts)]
            turn += 1
            try:
                async for chunk in crowd.stream(person, prompt):
                    at = time.perf_counter()
                    seen.add(chunk["system_fingerprint"])
                    if text := "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]):
                        if last is not None:
                            live.longest_gap_seconds = max(live.longest_gap_seconds, at - last)
                            if text.isascii():  # any other character may have taken several tokens
                                on_gap(at, at - last)
                        else:
                            live.first_waits.append((at, at - asked))
                        last = at
            except (StreamFailed, httpx.HTTPError) as error:
                live.failures.append(str(error) or type(error).__name__)
                continue
            live.finished += 1
            live.mixed += len(seen) > 1
            for version in seen:
                live.versions[version] = live.versions.get(version, 0) + 1

    await _together(one(person) for person in persons)


def errands(crowd: list[Person]) -> Iterator[tuple[Person, Prompt]]:
    """Everybody in turn, each with what they have to say next, without end."""
    turn = 0
    while True:
        for person in crowd:
            yield person, person.prompts[turn % len(person.prompts)]
        turn += 1


async def _together(work: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


def _as(person: Person) -> dict[str, str]:
    return {"x-kudos-user": person.name}


def _checked(response: httpx.Response) -> Any:
    if response.is_success:
        return response.json()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:500]
    raise Refused(f"{response.request.method} {response.request.url.path}: {response.status_code}: {message}")
