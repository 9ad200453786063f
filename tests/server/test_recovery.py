"""A server that lives ends the streams of one that died and never came back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from feedback.errors import StorageBusy
from feedback.schema import Reply, now
from feedback.settings import Settings
from feedback.store import open_store
from server.recovery import keep_recovering
from server.services import Services
from tests.feedback.conftest import add_reply


async def test_it_does_so_once_the_database_has_been_there_for_a_while(tmp_path: Any) -> None:
    store = open_store(Settings(home=tmp_path, database_url=None))
    with store.write() as session:
        old = add_reply(session, state="streaming", replica_id="gone", created_at=now() - timedelta(hours=1))
    tries: list[str] = []

    async def write(operation: Any) -> int:
        if len(tries) == 1:
            tries.append("away")
            raise StorageBusy("the database is away")
        with store.write() as session:
            found = int(operation(session))
            tries.append("found" if found else "looked")
            return found

    services = cast(Services, SimpleNamespace(write=write, residency=SimpleNamespace(replica_id="here")))
    task = asyncio.create_task(keep_recovering(services, every_seconds=0.01))
    async with asyncio.timeout(30):
        while len(tries) < 5:  # noqa: ASYNC110 - what is waited for is the task's own rhythm
            await asyncio.sleep(0.01)
    task.cancel()
    assert tries[:5] == ["looked", "away", "looked", "found", "looked"]
    with store.read() as session:
        assert session.get_one(Reply, old).state == "incomplete"
    store.close()
