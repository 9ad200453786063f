"""What a running server is made of, and the two ways to its database. Built once in `app`, handed to every route."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection
from sqlmodel import Session
from starlette.requests import HTTPConnection, Request

from deploy.settings import RolloutSettings
from feedback.ledger import Ledger
from feedback.store import Store
from feedback.verdicts import count_votes
from server import metrics
from server.cached import Cached
from server.durable import durable
from server.engine import Engine
from server.errors import ApiError
from server.identity import Identities, Identity, Scope
from server.limits import Allowance, Limits
from server.prompts import Prompts
from server.safety.screen import Filter
from server.settings import Settings
from server.system_prompts import PromptBook

if TYPE_CHECKING:
    from server.pairing import Draws
    from server.residency import Residency
    from server.turn import Turn

T = TypeVar("T")

_TOTAL_SECONDS = 2.0


@dataclass
class Services:
    settings: Settings
    store: Store
    ledger: Ledger
    engine: Engine
    prompts: Prompts
    identities: Identities
    residency: Residency
    plan: RolloutSettings  # by which rollouts are judged
    draws: Draws  # of pairs, where a matchup is automatic
    safety: Filter | None = None
    streams: Counter[str] = field(default_factory=Counter)  # user: replies being generated
    live: set[Turn] = field(default_factory=set)
    shadows: set[str] = field(default_factory=set)  # replies that a candidate in shadow is writing
    draining: bool = False
    limits: Limits = field(init=False)
    prompt_book: PromptBook = field(init=False)
    vote_total: Cached[int] = field(init=False)  # every open page asks for it, and it takes a look at all votes
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.limits = Limits(self.settings)
        self.prompt_book = PromptBook(self.read)
        self.vote_total = Cached(partial(self.read, count_votes), _TOTAL_SECONDS)

    async def write(self, operation: Callable[[Session], T]) -> T:
        """Returns when the operation's rows are durable. Raises StorageBusy when that takes too long."""
        return await self._durable(self.ledger.submit(operation))

    async def write_statements(self, operation: Callable[[Connection], T], *, one_row: bool = False) -> T:
        """The same for an operation that loads no objects. one_row: see `Ledger.submit_statements`."""
        return await self._durable(self.ledger.submit_statements(operation, one_row=one_row))

    async def _durable(self, written: Future[T]) -> T:
        started = time.perf_counter()
        try:
            return await durable(written, self.settings.write_timeout_seconds)
        finally:
            metrics.write_seconds.observe(time.perf_counter() - started)

    async def read(self, query: Callable[[Session], T]) -> T:
        def run() -> T:
            with self.store.read() as session:
                return query(session)

        return await asyncio.to_thread(run)

    async def who(self, connection: HTTPConnection, method: str) -> Identity:
        """As `Identities.identify`, and never by a look into the database that everybody's streams wait for."""
        if self.identities.knows(connection):
            return self.identities.identify(connection, method)
        return await asyncio.to_thread(self.identities.identify, connection, method)

    async def identity(self, request: Request, scope: Scope) -> Identity:
        """Who asks, if they may; the cookie of a new browser is set by the app on the way out."""
        found: Identity | None = request.scope["state"].get("identity")  # request.state raises what it has not
        if found is None:
            found = request.scope["state"]["identity"] = await self.who(request, request.method)
        if scope not in found.scopes:
            raise ApiError(403, f"this needs the scope {scope}", code="missing_scope")
        return found

    def admit(self, request: Request, identity: Identity) -> Allowance:
        """What this request may use, which its response's headers tell. Raises ApiError 429 when that is nothing."""
        allowance = self.limits.allowance(identity)
        request.state.allowance = allowance
        allowance.enter()
        return allowance

    async def pause(self, seconds: float) -> None:
        """Ends early where the server is about to end."""
        until = time.monotonic() + seconds
        while not self.draining and time.monotonic() < until:  # noqa: ASYNC110 - rare, and ends early
            await asyncio.sleep(min(0.2, seconds))

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that nobody's going away cancels; the server waits for it before it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish_background(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks))


def services_of(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services
