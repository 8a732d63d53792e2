"""Sums of a block that no order of users changes: split each number so that both halves add up without rounding."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

_SPARE_BITS = 13
"""Twice the 2048 numbers of a block, in bits, and one for the rounding of the largest."""


@nb.njit(nogil=True, cache=True)
def largest(w, bits, offset, n, spare):
    """Largest of n numbers, none of them below 0.

    Their bits, read as integers, have the same order; a maximum of integers is vectorised and one of floats is not.
    """
    found = bits[offset] * 0
    for i in range(np.uintp(n)):
        found = max(found, bits[offset + i])
    bits[spare] = found
    return w[spare]


@nb.njit(nogil=True, cache=True)
def _split(w, offset, n, anchor, high, low):
    for i in range(np.uintp(n)):
        x = np.float64(w[np.uintp(offset) + i])
        rounded = (x + anchor) - anchor
        high[i] = rounded
        low[i] = x - rounded


@nb.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _total(x, n):
    # Any order gives the same: the halves were cut so that no addition rounds.
    total = 0.0
    for i in range(np.uintp(n)):
        total += x[i]
    return total


@nb.njit(nogil=True, cache=True)
def add_block(w, offset, n, bound, high, low, total):
    """Add n numbers, each at most ``bound`` in size, to ``total``, a float64 and what its rounding left out.

    Source: Rump, Ogita, Oishi 2008, doi:10.1137/050645671 (ExtractVector); Knuth's two-sum.
    """
    anchor = math.ldexp(1.5, min(math.frexp(np.float64(bound))[1] + _SPARE_BITS, 1020))
    _split(w, offset, n, anchor, high, low)
    part, rest = _total(high, n), _total(low, n)
    add_total(part, total)
    total[1] += rest


@nb.njit(nogil=True, cache=True)
def add_total(part, total):
    """Add one float64 to ``total``, a float64 and what its rounding left out."""
    before = total[0]
    after = before + part
    seen = after - before
    total[0] = after
    total[1] += (before - (after - seen)) + (part - seen)
