"""A lease has one holder, also among processes, and one who lost it cannot publish."""

import multiprocessing
import time
from itertools import pairwise
from multiprocessing.queues import Queue

import pytest

from deploy import errors
from deploy.lease import acquire, check_fence, release, renew
from feedback.settings import Settings
from feedback.store import Store, open_store


def test_one_holder_at_a_time(store: Store) -> None:
    first = acquire(store, "trainer", "ada", 60.0)
    assert first.fence == 1
    with pytest.raises(errors.LeaseHeld, match="ada holds the lease 'trainer'"):
        acquire(store, "trainer", "bob", 60.0)
    with pytest.raises(errors.LeaseHeld):
        acquire(store, "trainer", "ada", 60.0)  # a second process under the same name is somebody else
    assert acquire(store, "another", "bob", 60.0).fence == 1
    assert renew(store, first, 120.0).expires_at > first.expires_at
    release(store, first)
    assert acquire(store, "trainer", "bob", 60.0).fence == 2


def test_one_who_slept_past_the_expiry_cannot_publish(store: Store) -> None:
    slept = acquire(store, "trainer", "ada", 0.05)
    time.sleep(0.1)
    with store.write() as session, pytest.raises(errors.LeaseLost, match="ran out"):
        check_fence(session, slept)
    taken = acquire(store, "trainer", "bob", 60.0)
    assert taken.fence == slept.fence + 1
    for attempt in (
        lambda: renew(store, slept, 60.0),
        lambda: in_transaction(store, slept),
    ):
        with pytest.raises(errors.LeaseLost, match="went to bob with fence 2"):
            attempt()
    release(store, slept)  # takes nothing from bob
    in_transaction(store, taken)


def in_transaction(store: Store, lease: object) -> None:
    with store.write() as session:
        check_fence(session, lease)  # type: ignore[arg-type]


def test_a_lease_that_nobody_ever_took(store: Store) -> None:
    taken = acquire(store, "trainer", "ada", 60.0)
    taken.name = "never"
    with store.write() as session, pytest.raises(errors.LeaseLost, match="went to nobody"):
        check_fence(session, taken)


def race(settings: Settings, holder: str, rounds: int, results: "Queue[tuple[int, float, float]]") -> None:
    """Take the lease again and again; report each fence with the span in which it was held."""
    store = open_store(settings)
    while rounds:
        try:
            lease = acquire(store, "trainer", holder, 30.0)
        except errors.LeaseHeld:
            time.sleep(0.001)
            continue
        began = time.monotonic()
        with store.write() as session:
            check_fence(session, lease)
        time.sleep(0.002)
        results.put((lease.fence, began, time.monotonic()))
        release(store, lease)
        rounds -= 1
    store.close()


def test_two_processes_race_for_it(settings: Settings) -> None:
    open_store(settings).close()
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [spawn.Process(target=race, args=(settings, name, 12, results)) for name in ("ada", "bob")]
    for process in processes:
        process.start()
    spans = sorted(results.get(timeout=120) for _ in range(24))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [fence for fence, _, _ in spans] == list(range(1, 25))
    for (_, _, ended), (_, began, _) in pairwise(spans):
        assert began >= ended, "two held it at once"
