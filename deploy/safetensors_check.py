"""Reading safetensors without torch: the header, and whether every weight is a finite number.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the bytes of
the tensors without gaps. A float is NaN or infinite exactly when all its exponent bits are set (in 8-bit e4m3 only
the all-ones pattern is NaN), so bit patterns are compared and no bfloat16 type is needed.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.errors import BadTensors, NotFinite, Truncated

MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
_CHUNK_ITEMS = 4 * 2**20

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

# dtype: (unsigned view, bits that are all set in NaN and infinity)
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


@dataclass(frozen=True)
class TensorInfo:
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte offsets in the file
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor's place, checked: inside the file, of the right length, without gaps or overlaps."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise Truncated(f"{path.name} has {size} bytes, too few for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise BadTensors(f"{path.name} claims a header of {length} bytes; it is not a safetensors file")
        if 8 + length > size:
            raise Truncated(f"{path.name} ends inside its header: {size} bytes of at least {8 + length}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _parse(name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadTensors(f"the header of {path.name} is malformed: {error}") from error
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _parse(name: str, entry: dict[str, object], data_start: int) -> TensorInfo:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name} has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int and at >= 0 for at in offsets):
        raise ValueError(f"{name} has the offsets {offsets!r}")
    start, end = offsets
    if end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes for shape {shape} of {dtype}")
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    at = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != at:
            raise BadTensors(f"in {path.name}, {name} starts at byte {info.start}, but the one before ends at {at}")
        at = info.end
    if at > size:
        raise Truncated(f"{path.name} has {size} bytes, but its header describes {at}")
    if at < size:
        raise BadTensors(f"{path.name} has {size - at} bytes after its last tensor")


def check_finite(path: Path, tensors: dict[str, TensorInfo]) -> None:
    """Raise NotFinite at the first NaN or infinity, naming the tensor and the place."""
    for name, info in tensors.items():
        if info.dtype not in _EXPONENTS or info.start == info.end:
            continue
        view, exponent = _EXPONENTS[info.dtype]
        items = np.memmap(path, dtype=view, mode="r", offset=info.start, shape=(math.prod(info.shape),))
        mask = items.dtype.type(exponent)
        for at in range(0, len(items), _CHUNK_ITEMS):
            bad = (items[at : at + _CHUNK_ITEMS] & mask) == mask
            if bad.any():
                place = at + int(bad.argmax())
                raise NotFinite(f"in {path.name}, {name} is NaN or infinite at item {place} of {len(items)}")


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor of a model folder, in one file or in shards."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        for name, info in read_header(path).items():
            if name in shapes:
                raise BadTensors(f"{name} is in more than one file of {folder.name}")
            shapes[name] = info.shape
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise BadTensors(f"{folder.name} has neither {single.name} nor {index.name}")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTensors(f"{index.name} of {folder.name} is malformed: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise BadTensors(f"{index.name} of {folder.name} names {name!r}, which is not a file beside it")
    return [folder / name for name in names]
