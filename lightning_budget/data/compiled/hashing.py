"""Splits by hash."""

from __future__ import annotations

import numba as nb
import numpy as np

from lightning_budget.hashing import FIRST, GOLDEN, SECOND


@nb.njit(nogil=True, cache=True)
def split_by_hash(ids, key, first, second, out):
    """``out[i]`` = 0, 1 or 2: how many of the two bounds the hash of ``ids[i]``, a number in (0, 1), has reached.

    Args:
        ids: ``[N]`` int64; key: of the stream of hashes, see :func:`~lightning_budget.hashing.hashed_uniform`.
        out: ``[N]`` int8.
    """
    for i in range(len(ids)):
        x = np.uint64(ids[i]) * np.uint64(GOLDEN) + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
        x ^= x >> np.uint64(31)
        u = (np.float64(x >> np.uint64(11)) + 0.5) / 9007199254740992.0
        out[i] = np.int8(u >= first) + np.int8(u >= second)
