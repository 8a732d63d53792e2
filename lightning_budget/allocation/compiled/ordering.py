"""Descending order of positive floats by radix sort: in a narrow bracket few digits differ, and only those cost."""

from __future__ import annotations

import numba as nb
import numpy as np

_BITS = 11
_DIGITS = 6
_SIZE = 1 << _BITS
_INSERTION = 24
"""Longest run of equals that insertion sorts."""

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def descending(bits, key):
    """Order of M floats at least 0, given as bits; equals by ``key [M]`` ascending, or unmoved where it is empty."""
    n = len(bits)
    order, other = np.arange(n), np.empty(n, np.int64)
    now, after = np.empty(n, np.uint64), np.empty(n, np.uint64)
    counts = np.zeros((_DIGITS, _SIZE), np.int64)
    for i in range(n):
        x = ~np.uint64(bits[i])
        now[i] = x
        for d in range(_DIGITS):
            counts[d, (x >> np.uint64(_BITS * d)) & np.uint64(_SIZE - 1)] += 1
    for d in range(_DIGITS):
        shift, place, single = np.uint64(_BITS * d), 0, False
        for digit in range(_SIZE):
            count = counts[d, digit]
            single = single or count == n
            counts[d, digit] = place
            place += count
        if single:
            continue
        for i in range(n):
            x = now[i]
            digit = (x >> shift) & np.uint64(_SIZE - 1)
            to = counts[d, digit]
            counts[d, digit] = to + 1
            after[to], other[to] = x, order[i]
        now, after, order, other = after, now, other, order
    if len(key):
        _by_key(now, order, key)
    return order


@_exact
def ascends(x):
    """Whether every number is above the one before it."""
    wrong = np.int64(0)
    for i in range(np.uintp(1), np.uintp(len(x))):
        wrong |= np.int64(x[i] <= x[i - np.uintp(1)])
    return wrong == 0


@_exact
def _by_key(sorted_bits, order, key):
    n, start = len(order), 0
    while start < n:
        stop = start + 1
        while stop < n and sorted_bits[stop] == sorted_bits[start]:
            stop += 1
        if stop - start > _INSERTION:
            run = order[start:stop].copy()
            by = np.argsort(key[run], kind="mergesort")
            for i in range(stop - start):
                order[start + i] = run[by[i]]
        else:
            for i in range(start + 1, stop):
                moved, j = order[i], i
                while j > start and key[order[j - 1]] > key[moved]:
                    order[j] = order[j - 1]
                    j -= 1
                order[j] = moved
        start = stop
