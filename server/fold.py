"""An adapter folded into the base's weights: W + s·B·A, rounded as the trainer rounds it, in a folder for the engine.

What is here: the arithmetic (`merge`), the folder on disk (`Shelf`), and when to try (`Patience`). Whether a fold is
right at the moment, and bringing it into the engine, is `residency`'s; why it is done so is decision 0016.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deploy.folders import settle, write_synced
from deploy.safetensors_check import TensorInfo, read_header, weight_files
from server.errors import Unfoldable

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_NOT_PLAIN = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
_CHUNK_BYTES = 1 << 22
_ROOM_LEFT = 0.05  # of the disk: votes need it more
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 600.0
_TEMPORARY = ".folding"


def folded(frozen: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s·B·A in fp32, then bf16. (out, in) from (out, in), (rank, in) and (out, rank).

    `trainer.lora.LoraAdapter.merged` to the last bit: a probe is computed with those weights.
    """
    import torch

    exact = frozen.to(torch.bfloat16).float() + scale * (b.float() @ a.float())
    return exact.to(torch.bfloat16)


def merge(base: Path, adapter: Path, target: Path, wanted: Callable[[], bool] = lambda: True) -> list[str]:
    """Write a model folder like `base` with the adapter in its weights; returns the files' names, each synced.

    One matrix is in memory at a time. `wanted` is asked before each. Raises Unfoldable when it says no, and for an
    adapter that is more than s·B·A.
    """
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    if odd := [key for key in _NOT_PLAIN if config.get(key)]:
        raise Unfoldable(f"{adapter.name} has {odd[0]} in its adapter_config.json; only s·B·A is folded")
    if "quantization_config" in json.loads((base / "config.json").read_bytes()):
        raise Unfoldable(f"{base.name} is quantized, and what its weights stand for is the engine's to know")
    scale, names = config["lora_alpha"] / config["r"], []
    for pattern in _PLAIN_FILES:
        for path in base.glob(pattern):
            if path.name not in ("manifest.json", "build.json"):
                write_synced(target / path.name, path.read_bytes())
                names.append(path.name)
    matrices, taken = _matrices(adapter), 0
    for shard in weight_files(base):
        with (target / shard.name).open("xb") as out:
            taken += _merge_file(shard, matrices, scale, out, wanted)
            out.flush()
            os.fsync(out.fileno())
        names.append(shard.name)
    if taken != len(matrices):
        raise Unfoldable(f"{adapter.name} sits on {len(matrices)} weights, of which {base.name} has {taken}")
    return names


def _matrices(adapter: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by the name of the weight that they sit on."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    return {
        name.removeprefix(prefix).removesuffix(suffix) + ".weight": (a, tensors[name.replace("lora_A", "lora_B")])
        for name, a in tensors.items()
        if name.endswith(suffix)
    }


def _merge_file(
    source: Path, matrices: dict[str, tuple[Tensor, Tensor]], scale: float, out: BinaryIO, wanted: Callable[[], bool]
) -> int:
    """One safetensors file, tensor by tensor; returns how many were folded."""
    from safetensors import safe_open

    infos = dict(sorted(read_header(source).items(), key=lambda item: item[1].start))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, info in infos.items():
        dtype, size = info.dtype, info.end - info.start
        if name in matrices:
            dtype, size = "BF16", 2 * info.shape[0] * info.shape[1]
        header[name] = {"dtype": dtype, "shape": list(info.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    out.write(struct.pack("<Q", len(head)) + head)
    with safe_open(source, framework="pt") as frozen, source.open("rb") as raw:
        for name, info in infos.items():
            if not wanted():
                raise Unfoldable("the server ends")
            if name in matrices:
                weight = folded(frozen.get_tensor(name), *matrices[name], scale)
                out.write(_bytes_of(weight))
            else:
                _copy(raw, info, out)
    return len(infos.keys() & matrices.keys())


def _bytes_of(weight: Tensor) -> bytes:
    import torch

    return weight.contiguous().view(torch.uint8).numpy().tobytes()


def _copy(raw: BinaryIO, info: TensorInfo, out: BinaryIO) -> None:
    raw.seek(info.start)
    left = info.end - info.start
    while left:
        chunk = raw.read(min(left, _CHUNK_BYTES))
        out.write(chunk)
        left -= len(chunk)


class Shelf:
    """One process's place on disk for folded weights, with one policy's at most. Nobody else reads it.

    Its lock goes with the process, so whoever comes later can tell what nobody needs any more and sweep it away.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: Path | None = None
        self._lock = -1
        self.closing = False

    def has(self, folder: Path) -> bool:
        return self._own is not None and folder.parent == self._own

    def put(self, version: str, base: Path, adapter: Path) -> Path:
        """The folded weights of `version`, whole; another's are removed. Raises Unfoldable, BadArtifact or OSError."""
        own = self._open()
        target = own / version
        if target.exists():
            return target
        self.clear()
        size, disk = sum(path.stat().st_size for path in weight_files(base)), shutil.disk_usage(own)
        if disk.free - size < _ROOM_LEFT * disk.total:
            raise Unfoldable(f"the disk has {disk.free >> 20} MiB free, too little beside {size >> 20} MiB of weights")
        temporary = own / _TEMPORARY
        temporary.mkdir()
        try:
            settle(temporary, merge(base, adapter, temporary, lambda: not self.closing), target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def clear(self) -> None:
        """What is on the shelf is not wanted any more."""
        for path in self._own.iterdir() if self._own is not None else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            os.close(self._lock)
            self._own = None

    def _open(self) -> Path:
        if self._own is None:
            self._root.mkdir(parents=True, exist_ok=True)
            sweep(self._root)
            with _locked(self._root / ".lock"):
                own = self._root / secrets.token_hex(8)
                own.mkdir()
                self._lock = os.open(own / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._own = own
        return self._own


def sweep(root: Path) -> None:
    """Remove the shelves of processes that have ended."""
    if not root.is_dir():
        return
    with _locked(root / ".lock"):
        for lock in root.glob("*/.lock"):
            with suppress(OSError), _locked(lock, wait=False):
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


class Patience:
    """When to try for a version: after it has been the one for `seconds`, and ever more rarely where it fails."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._version: str | None = None
        self._at = 0.0
        self.tries = 0

    def ripe(self, version: str | None, at: float) -> bool:
        if version != self._version:
            self._version, self._at, self.tries = version, at + self._seconds, 0
        return version is not None and at >= self._at

    def failed(self, at: float) -> None:
        self.tries += 1
        self._at = at + min(_PAUSE_SECONDS * 2 ** (self.tries - 1), _LONGEST_PAUSE_SECONDS)

    def never(self) -> None:
        """Not this version again, while it stays the one."""
        self._at = float("inf")
