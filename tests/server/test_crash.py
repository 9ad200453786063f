"""The server is killed with -9 at random moments while people chat and vote. What it acknowledged is there afterwards.

Everything but the engine is real: uvicorn, the routes, the ledger, SQLite. After the last kill the log is compared
with what the clients were told: every acknowledged vote is there once and says what was said, every reply whose
`[DONE]` arrived is whole, and nothing that was cut off can be voted on or learned from.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlmodel import select

from feedback.ids import new_id
from feedback.schema import Comparison, Reply, Vote
from feedback.verdicts import effective_votes
from tests.server.conftest import ForkedServer, events
from tests.server.fake_engine import REPLY_TOKENS

KILLS = int(os.environ.get("KUDOS_TEST_KILLS", "200"))
SERVERS = 2  # side by side, each with a home of its own
USERS = 4  # per server
UPTIME_SECONDS = 0.6  # at most, from ready to killed
WHOLE = "".join(f"word{at} " for at in range(REPLY_TOKENS))


@dataclass
class Told:
    """What one client was told by the server."""

    done: dict[str, str] = field(default_factory=dict)  # reply id: text, of each [DONE]
    acknowledged: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # target, key, answer
    said: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # idempotency key: ballot, sent whether or not answered
    refused: list[str] = field(default_factory=list)


class Voter(threading.Thread):
    """Chats, votes, changes its mind, and repeats under the same key whatever got no answer."""

    def __init__(self, server: ForkedServer, key: str, user: str, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.stop, self.told = server, stop, Told()
        self.random = random.Random(seed)
        self.headers = {"authorization": f"Bearer {key}", "x-kudos-user": user}
        self.pending: tuple[str, str, dict[str, Any]] | None = None  # path, key, ballot
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                try:
                    with httpx.Client(base_url=self.server.url, headers=self.headers, timeout=10.0) as client:
                        while not self.stop.is_set():
                            self.turn(client)
                except httpx.HTTPError:
                    time.sleep(0.01)  # the server was killed; it comes back
        except BaseException as error:
            self.failure = error
            raise

    def turn(self, client: httpx.Client) -> None:
        if self.pending is not None:
            self.vote(client, *self.pending)
        if self.random.random() < 0.3:
            self.compare(client)
        else:
            self.chat(client)

    def chat(self, client: httpx.Client) -> None:
        body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
        text, reply_id = "", ""
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                self.told.refused.append(f"chat {response.status_code}")
                return
            for event in events(response):
                if event == "[DONE]":
                    self.told.done[reply_id] = text
                    break
                assert "error" not in event, event
                reply_id = event["id"]
                text += event["choices"][0]["delta"].get("content", "")
        if reply_id not in self.told.done:
            return
        path = f"/v1/replies/{reply_id}/feedback"
        self.vote(client, path, new_id("idem"), {"thumb": self.random.choice(["up", "down"])})
        if self.random.random() < 0.5:
            self.vote(client, path, new_id("idem"), {"thumb": "up", "comment": f"changed {self.random.random()}"})

    def compare(self, client: httpx.Client) -> None:
        answer = client.post("/v1/comparisons", json={"messages": [{"role": "user", "content": "hello"}]})
        if answer.status_code != 200:
            self.told.refused.append(f"compare {answer.status_code}")
            return
        for side in ("left", "right"):
            reply = answer.json()[side]
            self.told.done[reply["id"]] = reply["choices"][0]["message"]["content"]
        choice = self.random.choice(["left", "right", "tie", "both_bad"])
        self.vote(client, f"/v1/comparisons/{answer.json()['id']}/choice", new_id("idem"), {"choice": choice})

    def vote(self, client: httpx.Client, path: str, key: str, ballot: dict[str, Any]) -> None:
        self.pending = (path, key, ballot)
        self.told.said[key] = ballot
        answer = client.put(path, json=ballot, headers={"idempotency-key": key})
        self.pending = None
        if answer.status_code == 200:
            self.told.acknowledged.append((path.split("/")[3], key, answer.json()))
        else:
            self.told.refused.append(f"vote {answer.status_code} {answer.text}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_two_hundred_times(forked: Callable[..., ForkedServer]) -> None:
    servers = [forked() for _ in range(SERVERS)]
    for server in servers:
        server.start()
    stop = threading.Event()
    voters = [
        Voter(server, (server.home / "operator.key").read_text().strip(), f"user{at}", 100 * number + at, stop)
        for number, server in enumerate(servers)
        for at in range(USERS)
    ]
    for voter in voters:
        voter.start()
    killed = [0] * SERVERS
    give_up_at = time.monotonic() + 1800

    def enough() -> bool:
        return sum(len(voter.told.acknowledged) for voter in voters) > KILLS or time.monotonic() > give_up_at

    killers = [
        threading.Thread(target=kill_often, args=(server, KILLS // SERVERS, number, killed, enough))
        for number, server in enumerate(servers)
    ]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()
    assert sum(killed) >= KILLS
    stop.set()
    for voter in voters:
        voter.join(30)
        assert voter.failure is None, voter.failure
    for server in servers:
        told = [voter.told for voter in voters if voter.server is server]
        check_log(server, told)
    acknowledged = sum(len(voter.told.acknowledged) for voter in voters)
    interrupted = sum(count_state(server, "incomplete") for server in servers)
    refused = Counter(line for voter in voters for line in voter.told.refused)
    print(f"\n{sum(killed)} kills: {acknowledged} votes acknowledged, {interrupted} replies cut off, {dict(refused)}")
    assert acknowledged > KILLS, "too few votes for the kills to have had a chance to lose one"
    assert interrupted > KILLS // 10, "the kills came too seldom in the middle of a reply"
    assert not refused, refused


def kill_often(server: ForkedServer, kills: int, number: int, killed: list[int], enough: Callable[[], bool]) -> None:
    """So many kills, and more where a busy machine let too few votes through; each further life may be longer."""
    draw = random.Random(number)
    while killed[number] < kills or not enough():
        time.sleep(draw.random() * UPTIME_SECONDS * (1 + killed[number] // kills))
        server.kill()
        killed[number] += 1
        server.start()


def count_state(server: ForkedServer, state: str) -> int:
    with server.store.read() as session:
        return len(session.exec(select(Reply.id).where(Reply.state == state)).all())


def check_log(server: ForkedServer, told: list[Told]) -> None:
    server.kill()
    server.start()  # what was streaming at the last kill is recovered by this start
    with server.store.read() as session:
        replies = {reply.id: reply for reply in session.exec(select(Reply))}
        votes = session.exec(select(Vote)).all()
        comparisons = {each.id: each for each in session.exec(select(Comparison))}
        effective = list(effective_votes(session))

    by_id = {vote.id: vote for vote in votes}
    per_key = Counter(vote.idempotency_key for vote in votes)
    said = {key: ballot for each in told for key, ballot in each.said.items()}
    assert set(per_key.values()) <= {1}, "a vote is there twice"
    assert set(per_key) <= set(said), "a vote that nobody cast"
    for vote in votes:  # whole or absent, acknowledged or not
        ballot = said[str(vote.idempotency_key)]
        assert {name: getattr(vote, name) for name in ballot} == ballot
    for each in told:
        for target, key, answer in each.acknowledged:
            vote = by_id[answer["vote_id"]]
            assert vote.target_id == target
            if answer["outcome"] != "duplicate":
                assert vote.idempotency_key == key
        for reply_id, text in each.done.items():
            assert replies[reply_id].state == "complete"
            assert replies[reply_id].text == text == WHOLE

    assert not [reply for reply in replies.values() if reply.state == "streaming"]
    for reply in replies.values():
        if reply.state == "incomplete":
            assert reply.text == ""
            assert reply.token_ids is None
    per_target = Counter((vote.user_id, vote.target_id) for vote in effective)
    assert set(per_target.values()) <= {1}, "two votes of one user on one target count"
    for vote in effective:
        pair = comparisons.get(vote.target_id)
        for reply_id in [vote.target_id] if pair is None else [pair.left_reply_id, pair.right_reply_id]:
            assert replies[reply_id].state == "complete", "half a reply could be learned from"

    cut_off = next((reply.id for reply in replies.values() if reply.state == "incomplete"), None)
    if cut_off is not None:
        user = replies[cut_off].user_id.split("/")[-1]
        headers = {
            "authorization": f"Bearer {(server.home / 'operator.key').read_text().strip()}",
            "x-kudos-user": user,
        }
        with contextlib.closing(httpx.Client(base_url=server.url, headers=headers, timeout=60)) as client:
            answer = client.put(f"/v1/replies/{cut_off}/feedback", json={"thumb": "up"})
            assert answer.status_code == 409, answer.text
