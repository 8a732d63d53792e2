"""An int64 for every user id, equal in every file and process: what ties are broken by and duplicates found by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.allocation import compiled
from lightning_budget.errors import InputError

_MULTIPLY = np.uint64(0x9E3779B97F4A7C15)


def is_key_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can name users."""
    types = pa.types
    return any(is_(kind) for is_ in (types.is_integer, types.is_string, types.is_large_string)) or (
        types.is_dictionary(kind) and is_key_type(kind.value_type)
    )


def keys_of(ids: pa.Array, where: str) -> NDArray[np.int64]:
    """``[n]``, not to be written to: whole numbers as they are, text by a hash of its bytes.

    Two of 1e8 texts share a hash with a probability of 3e-4.

    Args:
        ids: integers or text.
        where: names the rows in an error.

    Raises:
        InputError: for a null, or a column of another type.
    """
    if not is_key_type(ids.type):
        raise InputError(f"{where} has type {ids.type}", "whole numbers or text", "name another user_column")
    if ids.null_count:
        raise InputError(f"{where} names no user in {ids.null_count} rows", "a user in every row", "drop those rows")
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    if pa.types.is_integer(ids.type):
        x = ids.to_numpy(zero_copy_only=False)
        return x.view(np.int64) if x.dtype.itemsize == 8 else x.astype(np.int64)
    return _hashed(ids.cast(pa.large_string()))


def ascends(key: NDArray[np.int64]) -> bool:
    """Whether every one of the keys ``[n]`` is above the one before it."""
    if compiled.enabled():
        from lightning_budget.allocation.compiled import ordering

        return ordering.ascends(key)
    return bool((key[1:] > key[:-1]).all())


def _hashed(text: pa.Array) -> NDArray[np.int64]:
    """Eight bytes at a time, all texts at once."""
    n = len(text)
    _, offset_buffer, data = text.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[text.offset : text.offset + n + 1]
    lengths = np.diff(offsets)
    h = _mix(lengths.astype(np.uint64))
    if data is None or not n:
        return h.view(np.int64)
    start, stop = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(stop - start + 8, np.uint8)
    padded[: stop - start] = np.frombuffer(data, np.uint8, stop - start, start)
    words = np.lib.stride_tricks.sliding_window_view(padded, 8)
    rows = np.arange(n)
    begin = offsets[:-1] - start
    for position in range(0, int(lengths.max(initial=0)), 8):
        rows = rows[lengths[rows] > position]
        word = np.ascontiguousarray(words[begin[rows] + position]).view("<u8")[:, 0]
        left = np.minimum(lengths[rows] - position, 8).astype(np.uint64)
        kept = word & (np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - np.uint64(8) * left))
        h[rows] = _mix(h[rows] ^ kept)
    return h.view(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step: every bit of the input reaches every bit of the output."""
    x = x * _MULTIPLY + _MULTIPLY
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
