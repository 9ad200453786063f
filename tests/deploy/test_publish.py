"""A policy is published whole or not at all, whenever the publisher dies."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import errors
from deploy.artifacts import publish, published_folders, verify
from tests.deploy.folders import adapter_draft, make_adapter, make_model, publish_adapter, shapes

# What publish changes the disk with; each call of any of them is a moment at which the process can die.
CALLS = ("open", "write", "fsync", "mkdir", "rename", "close", "unlink", "rmdir")


class Interrupter:
    """Counts os calls and strikes at the Nth: before it, after half of a write, after a close."""

    def __init__(self, strike_at: int, strike: Callable[[], None]) -> None:
        self.calls = 0
        self._strike_at, self._strike = strike_at, strike

    def install(self, setattr_: Callable[[Any, str, Any], None]) -> None:
        for name in CALLS:
            setattr_(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._strike_at:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                if name == "close":  # Linux frees the descriptor even when it reports an error
                    real(*args)
                self._strike()
            return real(*args, **kwargs)

        return wrapped


def _calls_of_a_whole_publish(staging: Path, base: Path, root: Path) -> int:
    counter = Interrupter(-1, lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        counter.install(patch.setattr)
        publish(staging, adapter_draft(base), root)
    return counter.calls


def _publish_and_die(staging: Path, base: Path, root: Path, strike_at: int) -> bool:
    """In a forked child that exits without any clean-up at its Nth call; True if it got that far."""
    child = os.fork()
    if child == 0:
        try:
            Interrupter(strike_at, lambda: os._exit(9)).install(setattr)
            publish(staging, adapter_draft(base), root)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_death_at_every_call_leaves_the_whole_policy_or_none(base: Path, tmp_path: Path) -> None:
    staging = make_adapter(tmp_path / "staging")
    total = _calls_of_a_whole_publish(staging, base, tmp_path / "count")
    assert total > 20
    outcomes = set()
    for strike_at in range(1, total + 1):
        root = tmp_path / f"root-{strike_at}"
        assert _publish_and_die(staging, base, root, strike_at)
        visible = published_folders(root)
        outcomes.add(len(visible))
        for folder in visible:
            verify(folder, shapes(base))
        again = publish(staging, adapter_draft(base), root)
        assert verify(again.path, shapes(base)).version == again.version
        assert sorted(path.name for path in root.iterdir()) == [".publish.lock", again.version]
    assert outcomes == {0, 1}


def test_an_error_at_every_call_leaves_the_whole_policy_or_none(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: the publisher lives and gets the error."""
    staging = make_adapter(tmp_path / "staging")
    total = _calls_of_a_whole_publish(staging, base, tmp_path / "count")

    def no_space() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    failures = 0
    for strike_at in range(1, total + 1):
        root = tmp_path / f"root-{strike_at}"
        with monkeypatch.context() as patch:
            Interrupter(strike_at, no_space).install(patch.setattr)
            try:
                publish(staging, adapter_draft(base), root)
            except OSError:
                failures += 1
        for folder in published_folders(root):
            verify(folder, shapes(base))
        assert publish(staging, adapter_draft(base), root).number == 1
        assert len(list(root.iterdir())) == 2
    assert failures > total / 2


def test_the_same_again_is_the_same_version(base: Path, root: Path, tmp_path: Path) -> None:
    first = publish_adapter(base, root, tmp_path)
    before = (first.path / "manifest.json").stat().st_mtime_ns
    again = publish(tmp_path / "staging-1-0", adapter_draft(base), root)
    assert again == first
    assert (first.path / "manifest.json").stat().st_mtime_ns == before
    assert publish_adapter(base, root, tmp_path, seed=5).version != first.version


def test_a_damaged_policy_is_never_silently_kept(base: Path, root: Path, tmp_path: Path) -> None:
    first = publish_adapter(base, root, tmp_path)
    (first.path / "extra.json").write_text("{}")
    with pytest.raises(errors.UnlistedFile):
        publish(tmp_path / "staging-1-0", adapter_draft(base), root)


def test_what_verify_would_refuse_is_not_published(base: Path, root: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=3)
    staging = make_adapter(tmp_path / "staging")
    with pytest.raises(errors.WrongBase):
        publish(staging, adapter_draft(base), root, shapes(other))
    (staging / "link.json").symlink_to("/etc/hostname")
    with pytest.raises(errors.UnsafePath):
        publish(staging, adapter_draft(base), root)
    (staging / "link.json").unlink()
    (staging / "manifest.json").write_text("{}")
    with pytest.raises(errors.UnlistedFile):
        publish(staging, adapter_draft(base), root)
    assert published_folders(root) == []
    assert [path.name for path in root.iterdir()] == [".publish.lock"]


def _publish_many(base: Path, root: Path, staging: Path, numbers: list[int]) -> None:
    for number in numbers:
        publish(staging, adapter_draft(base, number), root)


def test_two_publishers_at_once_do_not_sweep_each_other(base: Path, root: Path, tmp_path: Path) -> None:
    staging = make_adapter(tmp_path / "staging")
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_publish_many, args=(base, root, staging, list(range(start, 30, 2)))) for start in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    found = published_folders(root)
    assert [verify(folder, shapes(base)).number for folder in found] == list(range(30))
