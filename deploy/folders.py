"""Folders that are published whole or not at all: files copied and synced, walked, and checked for what can run code.

What a folder must hold is its kind's matter: `artifacts` has policies, `classifiers` text classifiers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.digests import file_digest
from deploy.errors import (
    AutoMap,
    BadManifest,
    ForbiddenFile,
    MissingFile,
    Pickle,
    Truncated,
    UnlistedFile,
    UnsafePath,
    WrongDigest,
)
from deploy.manifest import FileEntry

_TEMPORARY_PREFIX = ".publishing-"
_LOCK_NAME = ".publish.lock"
_CHUNK_BYTES = 1 << 20

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # protocols 2 to 5; torch's zip
_ALLOWED_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".md"}


@contextmanager
def copied(staging: Path, root: Path, manifest_name: str) -> Iterator[tuple[Path, dict[str, FileEntry]]]:
    """A temporary folder in `root` with synced copies of the files of `staging`, which is left as it is. It goes when
    the block ends, unless it was settled."""
    root.mkdir(parents=True, exist_ok=True)
    with _only_publisher(root):
        _sweep(root)
        temporary = root / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(temporary, 0o755)
        try:
            names = sorted(walk(staging))
            if manifest_name in names:
                raise UnlistedFile(f"{staging.name} already holds a {manifest_name}; publishing writes it")
            yield temporary, {name: _copy_synced(staging / name, temporary / name) for name in names}
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def settle(temporary: Path, files: Iterable[str], target: Path) -> None:
    """Give a temporary folder its name, under which it is whole. One that is there already, from an earlier attempt,
    stays: only a rename made it visible."""
    for folder in {(temporary / name).parent for name in files} | {temporary}:
        _sync_folder(folder)
    if not target.exists():
        os.rename(temporary, target)
    _sync_folder(target.parent)


def check_files(folder: Path, files: Mapping[str, FileEntry], manifest_name: str) -> None:
    """Exactly the files of the manifest are there, and as they were published. Raises BadArtifact."""
    for name in files:
        _check_name(name)
    present = set(walk(folder))
    for name in sorted(present):
        check_harmless(folder / name)
    if unlisted := present - files.keys() - {manifest_name}:
        raise UnlistedFile(f"{folder.name} holds {min(unlisted)}, which its manifest does not list")
    if missing := files.keys() - present:
        raise MissingFile(f"{folder.name} lacks {min(missing)}, which its manifest lists")
    for name, entry in files.items():
        size = (folder / name).stat().st_size
        if size < entry.size:
            raise Truncated(f"{name} of {folder.name} has {size} bytes of {entry.size}")
        if size > entry.size or file_digest(folder / name) != entry.sha256:
            raise WrongDigest(f"{name} of {folder.name} is not the file that was published (SHA-256 differs)")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise UnsafePath(f"the manifest lists {name!r}, which is not a plain path inside the folder")


def check_harmless(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_MAGIC):
        raise Pickle(f"{path.name} can run code when it is read; only safetensors are accepted")
    if path.suffix.lower() not in _ALLOWED_SUFFIXES:
        raise ForbiddenFile(f"{path.name} is not a kind of file that a policy needs")


def check_no_auto_map(path: Path) -> None:
    try:
        body = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"{path.name} is not JSON: {error}") from error
    pending: list[Any] = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            # A tokenizer's vocabulary may well hold the word; there its value is a number.
            if not isinstance(value.get("auto_map"), int | None):
                raise AutoMap(f"{path.name} has an auto_map: it asks the reader to run code of its own")
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """Every file below `folder` as a relative path with slashes; a link or a special file is refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise UnsafePath(f"{folder.name} is not a plain folder")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from walk(folder / entry.name, name + "/")
            elif entry.is_file(follow_symlinks=False):
                yield name
            else:
                raise UnsafePath(f"{name} is a link or a special file, not a plain file")


@contextmanager
def _only_publisher(root: Path) -> Iterator[None]:
    """The kernel drops the lock of a process that dies, so whoever holds it may sweep every temporary folder."""
    descriptor = os.open(root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    for path in root.glob(f"{_TEMPORARY_PREFIX}*"):
        shutil.rmtree(path)


def _copy_synced(source: Path, target: Path) -> FileEntry:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(reader).st_mode):
            raise UnsafePath(f"{source.name} is not a plain file")
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            while chunk := os.read(reader, _CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                _write_all(writer, chunk)
            os.fsync(writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def write_synced(path: Path, body: bytes) -> None:
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        _write_all(writer, body)
        os.fsync(writer)
    finally:
        os.close(writer)


def _write_all(descriptor: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
