"""Policy folders: published whole or not at all, and verified before anything in them reaches an engine.

`publish` copies into a temporary folder beside the target, syncs every file and folder, and renames. A crash at any
moment leaves the whole policy or nothing that looks like one; what it leaves behind is swept away by the next publish.
A published folder is immutable. Which policies may serve is for the registry and the rollout, not for this module.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.digests import BaseShapes, file_digest, tokenizer_digest
from deploy.errors import (
    AutoMap,
    BadManifest,
    ForbiddenFile,
    MissingFile,
    Pickle,
    Truncated,
    UnlistedFile,
    UnsafePath,
    WrongBase,
    WrongDigest,
    WrongTokenizer,
)
from deploy.fit import check_adapter_config, check_adapter_shapes, check_full_shapes
from deploy.manifest import (
    MANIFEST_NAME,
    VERSION_PATTERN,
    Draft,
    FileEntry,
    Manifest,
    make_manifest,
    read_manifest,
)
from deploy.safetensors_check import check_finite, read_header
from feedback.schema import PolicyKind

_TEMPORARY_PREFIX = ".publishing-"
_LOCK_NAME = ".publish.lock"
_CHUNK_BYTES = 1 << 20

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # protocols 2 to 5; torch's zip
_ALLOWED_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".md"}


@dataclass(frozen=True)
class Published:
    version: str
    number: int
    path: Path
    digest: str
    manifest: Manifest


def publish(staging: Path, draft: Draft, root: Path, base: BaseShapes | None = None) -> Published:
    """Make the files of `staging` a policy below `root`; the staging folder is left as it is.

    The same files with the same draft give the same version, so a publisher that died after the rename may publish
    again. Raises BadArtifact, with nothing published, for a folder that `verify` would refuse.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _only_publisher(root):
        _sweep(root)
        temporary = root / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(temporary, 0o755)
        try:
            names = sorted(_walk(staging))
            if MANIFEST_NAME in names:
                raise UnlistedFile(f"{staging.name} already holds a {MANIFEST_NAME}; publishing writes it")
            files = {name: _copy_synced(staging / name, temporary / name) for name in names}
            manifest = make_manifest(draft, files)
            _check(temporary, manifest, base)
            _write_synced(temporary / MANIFEST_NAME, manifest.to_json())
            for folder in {(temporary / name).parent for name in names} | {temporary}:
                _sync_folder(folder)
            target = root / manifest.version
            if target.exists():  # published by an earlier attempt: whole, as only a rename makes it visible
                verify(target, base)
            else:
                os.rename(temporary, target)
            _sync_folder(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Published(manifest.version, manifest.number, target, manifest.digest, manifest)


def verify(folder: Path, base: BaseShapes | None, *, digest: str | None = None) -> Manifest:
    """Read a policy folder and refuse it, with the error that names the fault, unless it is exactly what was published.

    `base` is what the engine holds (None checks all but the fit); `digest` is what the registry remembers.
    """
    manifest = read_manifest(folder)
    if manifest.version != f"v{manifest.number}-{manifest.digest[:8]}" or digest not in (None, manifest.digest):
        raise WrongDigest(f"{MANIFEST_NAME} of {folder.name} is not the one that was published")
    if folder.name != manifest.version:
        raise BadManifest(f"the folder {folder.name} holds the manifest of {manifest.version}")
    for name in manifest.files:
        _check_name(name)
    present = set(_walk(folder))
    for name in sorted(present):
        _check_harmless(folder / name)
    if unlisted := present - manifest.files.keys() - {MANIFEST_NAME}:
        raise UnlistedFile(f"{folder.name} holds {min(unlisted)}, which its manifest does not list")
    if missing := manifest.files.keys() - present:
        raise MissingFile(f"{folder.name} lacks {min(missing)}, which its manifest lists")
    for name, entry in manifest.files.items():
        size = (folder / name).stat().st_size
        if size < entry.size:
            raise Truncated(f"{name} of {folder.name} has {size} bytes of {entry.size}")
        if size > entry.size or file_digest(folder / name) != entry.sha256:
            raise WrongDigest(f"{name} of {folder.name} is not the file that was published (SHA-256 differs)")
    _check(folder, manifest, base)
    return manifest


def published_folders(root: Path) -> list[Path]:
    """Every whole policy below `root`, by number; temporary folders never match."""
    found = [
        (int(match[1]), path)
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := VERSION_PATTERN.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def _check(folder: Path, manifest: Manifest, base: BaseShapes | None) -> None:
    """Whatever does not depend on where the folder lies: contents that are safe, whole, finite and fit the base."""
    adapter = manifest.kind is PolicyKind.ADAPTER
    for name in manifest.files:
        _check_harmless(folder / name)
    needed = {"adapter_model.safetensors", "adapter_config.json"} if adapter else {"config.json", "tokenizer.json"}
    if not adapter and "model.safetensors.index.json" not in manifest.files:
        needed.add("model.safetensors")
    if missing := needed - manifest.files.keys():
        raise MissingFile(f"{manifest.version} lacks {min(missing)}, which every {manifest.kind} policy has")
    for name in sorted(manifest.files):
        if name.endswith(".json"):
            _check_no_auto_map(folder / name)
        if name.endswith(".safetensors"):
            check_finite(folder / name, read_header(folder / name))
    if "tokenizer.json" in manifest.files and tokenizer_digest(folder) != manifest.tokenizer_digest:
        raise WrongTokenizer(f"the tokenizer in {manifest.version} is not the one that its manifest names")
    if manifest.lora is not None:
        check_adapter_config(folder, manifest.lora)
    if base is None:
        return
    if manifest.tokenizer_digest != base.tokenizer_digest:
        raise WrongTokenizer(
            f"{manifest.version} was made for the tokenizer {manifest.tokenizer_digest[:8]}, "
            f"the base has {base.tokenizer_digest[:8]}"
        )
    if manifest.lora is None:
        check_full_shapes(folder, base)
        return
    if manifest.base_digest != base.digest:
        raise WrongBase(
            f"{manifest.version} was made for the base {manifest.base_digest[:8]}, the engine holds {base.digest[:8]}"
        )
    check_adapter_shapes(folder, manifest.lora, base)


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise UnsafePath(f"the manifest lists {name!r}, which is not a plain path inside the folder")


def _check_harmless(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_MAGIC):
        raise Pickle(f"{path.name} can run code when it is read; only safetensors are accepted")
    if path.suffix.lower() not in _ALLOWED_SUFFIXES:
        raise ForbiddenFile(f"{path.name} is not a kind of file that a policy needs")


def _check_no_auto_map(path: Path) -> None:
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


def _walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """Every file below `folder` as a relative path with slashes; a link or a special file is refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise UnsafePath(f"{folder.name} is not a plain folder")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, name + "/")
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


def _write_synced(path: Path, body: bytes) -> None:
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
