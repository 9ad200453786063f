"""Token ids and logprobs as bytes: int32 and float32, little-endian, one after another."""

from collections.abc import Sequence

import numpy as np

BYTES_PER_ID = 4


def pack_ids(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def unpack_ids(data: bytes | None) -> list[int]:
    return [] if data is None else np.frombuffer(data, dtype="<i4").tolist()


def pack_logprobs(logprobs: Sequence[float]) -> bytes:
    return np.asarray(logprobs, dtype="<f4").tobytes()


def unpack_logprobs(data: bytes | None) -> list[float]:
    return [] if data is None else np.frombuffer(data, dtype="<f4").tolist()
