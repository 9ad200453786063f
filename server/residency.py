"""This replica's policies: looks at what is wanted, brings it into the engine, proves it, and says what it holds.

Nobody tells a replica what to do; it looks, twice a second. A policy is routed to only when its folder has been
verified and a probe has shown that the engine answers as the trainer's weights do. One that fails is named in
`problems`, and what served before goes on serving. A full swap exchanges the weights under everybody: new turns wait
for it, and one that it cuts in two is told so (`underway`). An adapter that serves alone for a while is folded into the
base's weights (decision 0016), and no turn is ever cut for that.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from sqlmodel import Session

from deploy import policies, rollout
from deploy.errors import BadArtifact
from deploy.manifest import Probe
from deploy.rollout import Wanted, WantedPolicy
from feedback.ledger import Ledger
from feedback.schema import PolicyKind, now
from feedback.store import Store
from server import metrics, routing
from server.engine import Engine
from server.errors import EngineDead, EngineError, Unfoldable
from server.fold import Patience, Shelf, sweep
from server.proof import NotProved, Proofs
from server.settings import Settings
from server.standing import Announcer, Standing, export
from server.underway import Underway

log = logging.getLogger("kudos.residency")

T = TypeVar("T")

_STALE_SECONDS = 10.0  # without a look at the wanted state a replica is not ready
_RETRY_SECONDS = 10.0  # after a failure that may pass; a refused folder is not tried again
_CALM_SECONDS = 60.0  # an engine that has run this long counts as recovered
_MOST_HOLDS = 3  # times that people wait for a fold, or the way back from one; then it finds another way


@dataclass
class Problem:
    message: str
    retry_at: float | None  # monotonic; None: never, while it stays wanted


class Residency:
    def __init__(
        self,
        settings: Settings,
        store: Store,
        engine: Engine,
        *,
        on_fatal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._engine = engine
        self._on_fatal = on_fatal
        self.ledger: Ledger | None = None  # its thread starts after the engine was forked
        self.started_at: datetime = now()
        self.address = ""
        self.wanted: Wanted
        self.held: frozenset[str] = frozenset()
        self.serving = ""  # what answers when neither arm is held
        self.weights = ""  # the policy whose base weights the engine holds
        self.problems: dict[str, Problem] = {}
        self._folders: dict[str, Path] = {}
        self._proofs = Proofs(store, engine, settings.policies_folder)
        self._announcer = Announcer(self.started_at)
        self.underway = Underway()
        self._shelf = Shelf(settings.home / "folded")
        self._fold_patience = Patience(settings.fold_after_seconds)
        self._unfold_patience = Patience(0.0)  # of the way back
        self._merging: tuple[str, asyncio.Task[Path]] | None = None
        self._below = ""  # a folded adapter's base
        self._nudged = asyncio.Event()
        self._looked_at = 0.0
        self._engine_started_at = 0.0
        self._restarts = 0
        self._task: asyncio.Task[None] | None = None

    # ---- what turns ask ----------------------------------------------------------------------------

    def assign(self, user_id: str) -> routing.Assignment:
        return routing.assign(user_id, self.wanted, self.held, self.serving)

    @property
    def replica_id(self) -> str:
        """This server among others, and the same one when it starts again."""
        return f"{socket.gethostname()}:{self.address.rpartition(':')[2]}"

    @property
    def folded(self) -> str | None:
        """The adapter that the engine's weights have in them, once that is proved."""
        return self.weights if self.weights in self.held and self._is_fold(self.weights) else None

    def _is_fold(self, version: str) -> bool:
        folder = self._folders.get(version)
        return folder is not None and self._shelf.has(folder)

    @property
    def ready(self) -> bool:
        fresh = time.monotonic() - self._looked_at < _STALE_SECONDS
        return bool(self.serving) and self._engine.healthy and fresh

    def nudge(self) -> None:
        """Look now: something was just decided."""
        self._nudged.set()

    # ---- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Registers the model, loads the weights that are wanted (or else the model) and holds them."""
        folder = self._settings.model_folder()
        sweep(self._settings.home / "folded")
        with self._store.write() as session:
            base = policies.register_base(session, folder)
            own = WantedPolicy(base.version, base.number, PolicyKind.BASE, base.path, base.digest, base.version)
        with self._store.read() as session:
            self.wanted = rollout.wanted(session)
        self._store.engine.dispose()  # no connection is shared with a forked engine
        first = self.wanted.policies[self.wanted.base]
        try:
            await self._load_weights(first)
        except (BadArtifact, OSError, EngineError) as error:
            if first.version == own.version:
                raise
            self._problem(first.version, error)
            await self._load_weights(own)
        if self.weights == first.version != own.version:
            log.warning(
                "KUDOS_MODEL names %s, but %s was rolled out on this home, and its base %s serves: "
                "`kudos rollout rollback` goes back",
                folder, self.wanted.stable, first.version,
            )  # fmt: skip
        self.serving = self.weights
        await self._reconcile()

    def run(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._shelf.closing = True
        if self._merging is not None:
            await asyncio.wait({self._merging[1]})
        await asyncio.to_thread(self._shelf.close)
        await self._report(ready=False)

    async def _loop(self) -> None:
        while True:
            self._nudged.clear()
            try:
                await self._reconcile()
            except Exception:  # isolates: the loop must outlive a database that is away
                log.exception("the replica could not reconcile; it goes on with what it holds")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.reconcile_seconds):
                    await self._nudged.wait()

    # ---- reconciling -------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        if not self._engine.healthy:
            await self._revive()
        wanted = await self._read(rollout.wanted)
        self.wanted = wanted
        self._looked_at = time.monotonic()
        for version in set(self.problems) - set(wanted.policies):
            del self.problems[version]  # wanted again later, it is tried again
        stays_folded = self.folded is not None and self.folded == wanted.foldable
        if self.folded is not None and not stays_folded and self._below == wanted.base:
            await self._unfold()
        elif wanted.base != self.weights and not stays_folded and self._may_try(wanted.base):
            await self._swap(wanted.policies[wanted.base])
        await self._take_own()
        self.serving = self._what_serves()
        if wanted.base == self.weights:
            await self._fold_when_ripe()
        for version in self.held - set(wanted.policies) - {self.serving, self.weights}:
            if not self.underway.of(version):
                self.held -= {version}
                await self._engine.drop_adapter(version)
        await self._report(ready=self.ready)

    def _what_serves(self) -> str:
        wanted = self.wanted
        if wanted.candidate in self.held and wanted.share >= 1.0:
            return str(wanted.candidate)
        for version in (wanted.stable, self.serving):
            if version in self.held:
                return version
        return self.weights

    def _may_try(self, version: str) -> bool:
        problem = self.problems.get(version)
        return problem is None or (problem.retry_at is not None and time.monotonic() >= problem.retry_at)

    def _problem(self, version: str, error: Exception) -> None:
        passing = not isinstance(error, BadArtifact)
        retry_at = time.monotonic() + _RETRY_SECONDS if passing else None
        self.problems[version] = Problem(str(error) or type(error).__name__, retry_at)
        log.error("policy %s is not served: %s", version, error)

    async def _take_own(self) -> None:
        """The adapters on the weights that are there, also while others are wanted that cannot be had."""
        for version, policy in self.wanted.policies.items():
            if policy.base == self.weights != version and version not in self.held and self._may_try(version):
                await self._take(policy)

    async def _take(self, policy: WantedPolicy) -> None:
        """One adapter: verify, load, prove, and only then hold."""
        try:
            with _phase("verify"):
                probe = await self._proofs.verified(policy)
            with _phase("load"):
                await self._engine.load_adapter(policy.version, self._proofs.folder(policy))
            with _phase("prove"):
                await self._proofs.prove(policy.version, probe)
        except (BadArtifact, OSError, EngineError) as error:
            if self._engine.healthy:
                await self._engine.drop_adapter(policy.version)
            self._problem(policy.version, error)
            metrics.policy_swaps_total.labels(policy.kind.value, _result(error)).inc()
            return
        self.held |= {policy.version}
        self.problems.pop(policy.version, None)
        metrics.policy_swaps_total.labels(policy.kind.value, "proved").inc()
        log.info("policy %s is held", policy.version)

    async def _swap(self, policy: WantedPolicy) -> None:
        """Other base weights. If they cannot be proved, the weights of before come back."""
        before = self.weights
        try:
            with _phase("verify"):
                probe = await self._proofs.verified(policy)
        except (BadArtifact, OSError) as error:
            self._problem(policy.version, error)
            metrics.policy_swaps_total.labels(policy.kind.value, _result(error)).inc()
            return
        with self.underway.closed():
            await self.underway.ended(self._settings.swap_wait_seconds)
            try:
                await self._exchange(policy.version, self._proofs.folder(policy), probe, policy)
                metrics.policy_swaps_total.labels(policy.kind.value, "proved").inc()
                self.problems.pop(policy.version, None)
                log.info("the weights of %s are held", policy.version)
            except (BadArtifact, OSError, EngineError) as error:
                self._problem(policy.version, error)
                metrics.policy_swaps_total.labels(policy.kind.value, _result(error)).inc()
                await self._return_to(before)
                await self._take_own()  # before anybody's turn begins: what served goes on serving
                self.serving = self._what_serves()

    async def _exchange(self, version: str, folder: Path, probe: Probe | None, policy: WantedPolicy | None) -> None:
        with _phase("load"):
            self.underway.exchanged(version)
            self.held = frozenset()
            await self._engine.swap_full(version, folder)
            self.weights = version
            self._folders[version] = folder
        with _phase("prove"):
            if policy is not None:
                await self._proofs.prove(policy.version, probe)
            await self._proofs.check_fingerprint(version)
        self.held = frozenset({version})
        self.serving = version

    async def _return_to(self, version: str) -> None:
        try:
            if not self._engine.healthy:
                raise EngineDead("the engine died in the swap")
            await self._exchange(version, self._folders[version], None, None)
        except (BadArtifact, OSError, EngineError):
            await self._revive(version)

    # ---- folding -----------------------------------------------------------------------------------

    async def _fold_when_ripe(self) -> None:
        """Merge in the background, then exchange the weights at a moment when no turn runs; or leave it for later."""
        version = self.wanted.foldable if self._settings.fold else None
        if self._merging is not None and self._merging[0] != version:
            _, merging = self._merging
            if not merging.done():
                return
            self._merging = None
            await asyncio.to_thread(self._shelf.clear)
        if not self._fold_patience.ripe(version, time.monotonic()) or version not in self.held:
            return
        policy = self.wanted.policies[version]
        if self._merging is None:
            work = asyncio.to_thread(self._shelf.put, version, self._folders[self.weights], self._proofs.folder(policy))
            self._merging = version, asyncio.create_task(work)
        if not self._merging[1].done():
            return
        try:
            folder, probe = self._merging[1].result(), await self._proofs.verified(policy)
        except (Unfoldable, BadArtifact, OSError) as error:
            log.warning("%s stays an adapter: %s", version, error)
            metrics.policy_swaps_total.labels("fold", _result(error)).inc()
            self._merging = None
            self._fold_patience.failed(time.monotonic())
            return
        if self.underway.any and self._fold_patience.tries >= _MOST_HOLDS:
            return  # people have waited often enough: from now on only when nobody is being answered
        with self.underway.closed():
            if await self.underway.ended(self._settings.fold_wait_seconds):
                await self._fold(policy, folder, probe)
            else:
                metrics.policy_swaps_total.labels("fold", "waited").inc()
                self._fold_patience.failed(time.monotonic())

    async def _fold(self, policy: WantedPolicy, folder: Path, probe: Probe | None) -> None:
        """No turn runs, and none begins. What cannot be proved is undone: the base again, and the adapter on it."""
        base = self.weights
        try:
            for version in self.held - {base}:
                await self._engine.drop_adapter(version)
            await self._exchange(policy.version, folder, probe, policy)
            self._below = base
            metrics.policy_swaps_total.labels("fold", "proved").inc()
            log.info("%s is folded into the weights of %s", policy.version, base)
        except (BadArtifact, OSError, EngineError) as error:
            log.error("%s could not be folded: %s", policy.version, error)
            metrics.policy_swaps_total.labels("fold", _result(error)).inc()
            self._fold_patience.never()
            await self._return_to(base)
            await self._take(policy)
            self.serving = self._what_serves()

    async def _unfold(self) -> None:
        """The base again, and on it the adapter that serves, before anybody's turn begins.

        A rollback does not wait for long, and a rollout not for ever: then turns are cut in two as in a full swap.
        """
        wanted, folded = self.wanted, self.weights
        patience, at = self._unfold_patience, time.monotonic()
        if not self._may_try(wanted.base) or not patience.ripe(folded, at):
            return
        base = wanted.policies[wanted.base]
        try:
            await self._proofs.verified(base)
        except (BadArtifact, OSError) as error:
            self._problem(base.version, error)
            return
        with self.underway.closed():
            ended = await self.underway.ended(self._settings.fold_wait_seconds)
            if not ended and wanted.stable == folded and patience.tries < _MOST_HOLDS:
                metrics.policy_swaps_total.labels("unfold", "waited").inc()
                patience.failed(time.monotonic())
                return
            try:
                await self._exchange(base.version, self._proofs.folder(base), None, base)
            except (BadArtifact, OSError, EngineError) as error:
                self._problem(base.version, error)
                metrics.policy_swaps_total.labels("unfold", _result(error)).inc()
                await self._return_to(folded)
                return
            if wanted.stable in wanted.adapters:
                await self._take(wanted.policies[wanted.stable])
            if wanted.stable == folded and folded not in self.held:
                patience.failed(time.monotonic())
                await self._return_to(folded)
                return
            self.serving = self._what_serves()
        self._unfold_patience = Patience(0.0)
        metrics.policy_swaps_total.labels("unfold", "proved").inc()
        log.info("%s is an adapter again, on the weights of %s", folded, base.version)

    # ---- the engine's weights ----------------------------------------------------------------------

    async def _load_weights(self, policy: WantedPolicy) -> None:
        probe = self._proofs.verify(policy)  # not in a thread: the engine may be forked from this process
        folder = self._proofs.folder(policy)
        await self._engine.start(policy.version, folder)
        self._engine_started_at = time.monotonic()
        self.underway.exchanged(policy.version)
        self.weights, self._folders[policy.version] = policy.version, folder
        await self._proofs.prove(policy.version, probe)
        await self._proofs.check_fingerprint(policy.version)
        self.held = frozenset({policy.version})

    async def _revive(self, version: str | None = None) -> None:
        """Start a dead engine again on the last weights that were proved. Gives up after too many deaths in a row."""
        version = version or self.weights
        self.held = frozenset()
        metrics.engine_up.set(0)
        await self._report(ready=False)
        if time.monotonic() - self._engine_started_at > _CALM_SECONDS:
            self._restarts = 0
        while True:
            self._restarts += 1
            if self._restarts > self._settings.engine_restarts:
                reason = f"the engine died {self._restarts} times in a row"
                self._on_fatal(reason)
                raise EngineDead(reason)
            log.error("the engine is dead; start %s of %s", self._restarts, self._settings.engine_restarts)
            metrics.engine_restarts_total.inc()
            try:
                await self._engine.start(version, self._folders[version])
                self._engine_started_at = time.monotonic()
                self.underway.exchanged(version)
                self.weights = version
                await self._proofs.check_fingerprint(version)
                break
            except Exception:  # isolates: whatever stopped one start may not stop the next
                log.exception("the engine did not start")
                if self._is_fold(version):
                    version = self._below  # its folder may be gone; the adapter is taken again from its own
                await asyncio.sleep(min(2.0**self._restarts, 30.0))
        self.held = frozenset({version})
        self.serving = self._what_serves()

    # ---- reporting ---------------------------------------------------------------------------------

    async def _read(self, query: Callable[[Session], T]) -> T:
        def run() -> T:
            with self._store.read() as session:
                return query(session)

        return await asyncio.to_thread(run)

    async def _report(self, *, ready: bool) -> None:
        problems = {version: problem.message for version, problem in self.problems.items()}
        standing = Standing(self.address, ready, self.weights, sorted(self.held), problems)
        export(
            standing, self.wanted, serving=self.serving, folded=self.folded is not None,
            engine_up=self._engine.healthy, home=self._settings.home,
        )  # fmt: skip
        if self.ledger is not None:
            metrics.ledger_waiting.set(self.ledger.waiting)
            await self._announcer.announce(self.ledger, self.replica_id, standing)


def _result(error: Exception) -> str:
    if isinstance(error, NotProved):
        return "not_proved"
    return "refused" if isinstance(error, BadArtifact | Unfoldable) else "failed"


@contextmanager
def _phase(name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        metrics.policy_swap_seconds.labels(name).observe(time.perf_counter() - started)
