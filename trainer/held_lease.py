"""The trainer's lease, kept alive while a run lasts: of two trainers only one may publish."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deploy import lease as leases
from deploy.errors import LeaseLost
from feedback.errors import StorageError
from feedback.ids import new_id
from feedback.schema import Lease, now
from feedback.store import Store
from trainer.errors import LostLease

LEASE = "trainer"
LEASE_SECONDS = 90.0


class HeldLease:
    """The trainer's lease, renewed in the background; `check` raises once it is lost."""

    def __init__(self, store: Store, row: Lease) -> None:
        self.row = row
        self._store = store
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost is not None:
            raise LostLease(f"this run may not publish, since its lease is lost: {self._lost}")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(StorageError):  # it runs out by itself
            leases.release(self._store, self.row)

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            try:
                self.row = leases.renew(self._store, self.row, LEASE_SECONDS)
            except LeaseLost as error:
                self._lost = str(error)
                return
            except StorageError as error:  # busy, or away for a moment: the lease holds until it runs out
                if now() >= self.row.expires_at:
                    self._lost = f"it ran out, as it could not be renewed: {error}"
                    return


@contextmanager
def held_lease(store: Store) -> Iterator[HeldLease]:
    holder = f"{socket.gethostname()}:{os.getpid()}:{new_id('t')}"
    lease = HeldLease(store, leases.acquire(store, LEASE, holder, LEASE_SECONDS))
    try:
        yield lease
    finally:
        lease.close()
