"""Lists put in another order."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(nogil=True, cache=True)
def entries_in_order(entries, offsets, rows, out):
    """Write the entries of some rows' lists to ``out``, one row's after the other's.

    Args:
        entries: of all rows; offsets: ``[N + 1]``, where each row's begin.
        rows: ``[n]``, those wanted.
    """
    to = np.uintp(0)
    for row in rows:
        for i in range(np.uintp(offsets[row]), np.uintp(offsets[row + 1])):
            out[to] = entries[i]
            to += np.uintp(1)
