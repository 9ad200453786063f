"""One server process, from settings to its last goodbye: build, listen, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from deploy.errors import BadPlan
from deploy.settings import RolloutSettings, read_plan
from feedback.ledger import Ledger, recover_unfinished
from feedback.store import Store, open_store
from server.app import make_app
from server.engine import Engine
from server.errors import BadConfiguration
from server.identity import Identities, cookie_secret, ensure_operator_key, live_keys
from server.pairing import Draws
from server.prompts import Prompts
from server.protocol import Protocol
from server.recovery import keep_recovering
from server.residency import Residency
from server.safety.config import read_config
from server.safety.screen import Filter
from server.services import Services
from server.settings import Settings
from server.supervision import supervise

log = logging.getLogger("kudos.server")

_BACKLOG = 4096


def check_keys(settings: Settings, store: Store) -> None:
    """On loopback a fresh install works; anything else needs a key of somebody's making.

    Raises:
        BadConfiguration: names the mend.
    """
    if settings.on_loopback:
        ensure_operator_key(store, settings.operator_key_path)
        return
    with store.read() as session:
        if live_keys(session):
            return
    raise BadConfiguration(
        f"KUDOS_HOST={settings.host} can be reached from other machines, and no API key exists. Make one with "
        "`kudos key create NAME --scopes chat,feedback` (and one with the scope operator), or listen on 127.0.0.1."
    )


@asynccontextmanager
async def serving(
    settings: Settings,
    engine: Engine,
    on_fatal: Callable[[str], None] = lambda reason: None,
    make_prompts: Callable[[Path], Prompts] = Prompts,
) -> AsyncIterator[tuple[FastAPI, Services]]:
    """The application and what it stands on; ready to answer inside the block."""
    plan = _plan()
    store = open_store(settings)
    ledger: Ledger | None = None
    safety: Filter | None = None
    try:
        check_keys(settings, store)
        if settings.safety_file is not None:
            read_config(settings.safety_file)  # a mistake in it is told before the engine takes its time to start
        residency = Residency(settings, store, engine, on_fatal=on_fatal)
        # Nothing that starts a thread may come before the engine, which may be forked from this process.
        await residency.start()
        prompts = make_prompts(settings.model_folder())
        ledger = Ledger(store)
        residency.ledger = ledger
        identities = Identities(
            store,
            secret=cookie_secret(settings.home / "cookie.secret"),
            browsers=settings.on_loopback,
            secure_cookies=settings.secure_cookies,
        )
        if settings.safety_file is not None:
            safety = await asyncio.to_thread(Filter, settings.safety_file, settings.home)
        draws = Draws(store, residency, plan)
        services = Services(settings, store, ledger, engine, prompts, identities, residency, plan, draws, safety)
        watching = {
            asyncio.create_task(each)
            for each in (draws.keep_fresh(), keep_recovering(services), supervise(store, residency, plan))
        }
        yield make_app(services), services
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        services.draining = True
        await services.finish_background()
        await residency.close()
    finally:
        if ledger is not None:
            await asyncio.to_thread(ledger.close)
        if safety is not None:
            safety.close()
        await engine.close()
        store.close()


def _plan() -> RolloutSettings:
    try:
        return read_plan()
    except BadPlan as error:
        raise BadConfiguration(str(error)) from None


class DrainingServer(uvicorn.Server):
    """On the first signal: no new streams, those that run may end, then the rest are told and cut. On a second: now."""

    def __init__(self, config: uvicorn.Config, services: Services, address: str) -> None:
        super().__init__(config)
        self._services = services
        self._address = address
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._services.residency.run()
            print(f"kudos is ready: {self._address}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is not None:
            self.should_exit = True
            self.force_exit = True
            return
        self._services.draining = True
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        services = self._services
        deadline = asyncio.get_running_loop().time() + services.settings.drain_seconds
        while services.live and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.05)
        for turn in list(services.live):
            turn.interrupt()
        while services.live:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self.should_exit = True


def take_port(settings: Settings) -> socket.socket:
    """A socket that holds the port and refuses everybody until it listens."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _port_errors(settings, taken):
        taken.bind((settings.host, settings.port))
    return taken


@contextmanager
def _port_errors(settings: Settings, taken: socket.socket) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        taken.close()
        raise BadConfiguration(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): set KUDOS_PORT to a free port"
        ) from error


async def serve(settings: Settings, engine: Engine, make_prompts: Callable[[Path], Prompts] = Prompts) -> int:
    """Returns the exit status."""
    # Before the engine starts, so that nobody else takes it meanwhile; an engine forked from this process must not hold
    # it open after us.
    listener = take_port(settings)
    os.register_at_fork(after_in_child=listener.close)
    fatal: list[str] = []
    running: list[DrainingServer] = []

    def give_up(reason: str) -> None:
        fatal.append(reason)
        for server in running:
            server.should_exit = True

    async with serving(settings, engine, give_up, make_prompts) as (app, services):
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        with _port_errors(settings, listener):  # another server may have taken it too, and have been quicker to listen
            listener.listen(_BACKLOG)
        services.residency.address = f"http://{host}:{listener.getsockname()[1]}"
        replica_id = services.residency.replica_id
        recovered = await services.write(lambda session: recover_unfinished(session, replica_id))
        if recovered:
            log.warning("%s replies were cut off when a server ended; they are incomplete now", recovered)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            backlog=_BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
            server_header=False,
            proxy_headers=False,  # nothing here asks where a client is
            http=Protocol,
            ws="none",
        )
        server = DrainingServer(config, services, services.residency.address)
        running.append(server)
        # What was imported (700,000 objects with an engine) lives as long as the process; whenever the collector looked
        # through it, every stream stood still for half a second.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 50)  # coroutines come and go by the thousand, and few of them in circles
        await server.serve(sockets=[listener])
    for reason in fatal:
        print(f"kudos: {reason}", file=sys.stderr, flush=True)
    return 1 if fatal else 0
