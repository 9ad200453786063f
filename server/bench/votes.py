"""Durable votes a second over HTTP, alone and with chats beside them.

The replies to vote on are written into the database beforehand. A vote counts when its answer has come, which is after
the commit that made it durable; what the database holds in the end is compared with what was answered.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from feedback.ids import prompt_digest
from feedback.schema import Conversation, Reply, ReplyState, User, Vote, now
from feedback.settings import Settings
from feedback.statements import insert_many, table
from feedback.store import Store, open_store
from server.bench.processes import kudos
from server.bench.wrk import SCRIPTS, Wrk

USERS = 64
_RATE = 6_000  # votes a second for which there are replies
_WARM_SECONDS = 3
_CHUNK = 5_000


def measure(*, seconds: int, clients: int, streams: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kudos-votes-") as folder:
        home = Path(folder)
        settings = Settings(home=home, database_url=None)
        store = open_store(settings)
        try:
            replies = _RATE * (2 * seconds + _WARM_SECONDS)
            _fill(store, replies)
            with kudos(home) as address:
                key = (home / "operator.key").read_text().strip()
                bench = _Bench(store, address, key, clients)
                bench.run(_WARM_SECONDS)
                alone = bench.run(seconds)
                beside = bench.run(seconds, streams) if streams else {}
        finally:
            store.close()
    return {"clients": clients, "alone": alone, f"beside_{streams}_streams": beside}


class _Bench:
    def __init__(self, store: Store, address: str, key: str, clients: int) -> None:
        self._store, self._address, self._clients = store, address, clients
        self._environment = {"KEY": key, "USERS": str(USERS), "COMMON": str(SCRIPTS / "common.lua")}
        self._first = 0

    def run(self, seconds: int, streams: int = 0) -> dict[str, Any]:
        chats = None
        if streams:
            environment = self._environment | {"MODEL": "kudos-tiny", "FIELDS": ',"max_tokens":64'}
            chats = Wrk("chat.lua", self._address, connections=streams, seconds=seconds + 2, environment=environment)
            time.sleep(1.0)
        before = self._votes()
        said = Wrk(
            "votes.lua",
            self._address,
            connections=self._clients,
            seconds=seconds,
            environment=self._environment | {"FIRST": str(self._first)},
        ).result()
        time.sleep(0.5)  # what was under way when wrk left
        durable = self._votes() - before
        self._first += durable + self._clients
        answered = said["requests"] - said["refused"]
        figures = {
            "votes_per_second": round(answered / said["seconds"], 1),
            **{name: said[name] for name in ("p50_ms", "p99_ms", "max_ms", "refused", "broken")},
            "answered": answered,
            "durable": durable,
        }
        if chats is not None:
            chatted = chats.result()
            figures["replies_per_second"] = round(chatted["requests"] / chatted["seconds"], 1)
            figures["replies_refused"] = chatted["refused"]
        return figures

    def _votes(self) -> int:
        with self._store.read() as session:
            return int(session.execute(select(func.count()).select_from(table(Vote))).scalar_one())


def _fill(store: Store, replies: int) -> None:
    at = now()
    messages = [{"role": "user", "content": "where is my order?"}]
    digest = prompt_digest(messages)
    with store.write() as session:
        users = [f"operator/u{number}" for number in range(USERS)]
        insert_many(session, User, [{"id": user, "created_at": at, "consent": None} for user in users])
        for start in range(0, replies, _CHUNK):
            numbers = range(start, min(start + _CHUNK, replies))
            conversations = [
                {
                    "id": f"conv-{number:032x}",
                    "user_id": users[number % USERS],
                    "title": "where is my order?",
                    "created_at": at,
                    "updated_at": at,
                }
                for number in numbers
            ]
            rows = [
                {
                    "id": f"chatcmpl-{number:032x}",
                    "conversation_id": f"conv-{number:032x}",
                    "user_id": users[number % USERS],
                    "created_at": at,
                    "finished_at": at,
                    "state": ReplyState.COMPLETE.value,
                    "messages": messages,
                    "prompt_digest": digest,
                    "text": "It is on its way, and will be with you in two days.",
                    "sampling": {},
                    "policy_version": "v1-aaaaaaaa",
                    "arm": "stable",
                    "propensity": 1.0,
                    "source": "chat",
                }
                for number in numbers
            ]
            insert_many(session, Conversation, conversations)
            insert_many(session, Reply, rows)
