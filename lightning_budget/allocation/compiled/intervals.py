"""Between which multipliers each arm of a block of users is chosen, for at most eight arms.

An arm is chosen between two multipliers: above the slopes to all dearer arms, up to those to all cheaper ones. A slope
is held as the integer of its bits, which for positive floats grows with it, with the pair of arms in the last six. So
no two slopes of a user are equal, and which arm takes over at an end can be read from it.

For two arms the dearer one's interval ends where the cheaper one's begins or below, so no intervals overlap: those of
a user fill a range exactly if each begins where another ends. Rounding and the bits of pairs may leave a gap between
arms that all but lie on one line; such a user is called odd.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from lightning_budget.allocation.compiled.blocks import PITCH

WRITTEN = (2, 5, 8)
"""Numbers of arms that code is made for; it takes seconds to make."""

PAIR = 63
"""The bits of a slope that name two arms, the lower number in the upper three."""

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


def _reinterpret(typing, x):
    """The bits of a float as an integer."""
    del typing
    integer = types.int32 if x == types.float32 else types.int64

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return integer(x), build


def _convert(typing, x, like):
    """An integer in the type of another: sums of narrow ones are wide, and half as many fit into a register."""
    del typing

    def build(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return like(x, like), build


_bits: Any = intrinsic(_reinterpret)
_as: Any = intrinsic(_convert)


@_exact
def meet(va, ca, vb, cb, low_a, high_a, low_b, high_b, i, j, mask):
    """Narrow the intervals of two arms, numbers i < j, by the slope between them; of equal ones the second is empty.

    Below 0 all slopes are only known to be so.
    """
    price = cb - ca
    slope = (vb - va) / price
    bits = _bits(slope) if slope == slope else ~mask
    bits = _as((bits & ~PAIR) | (8 * i + j), mask)
    dearer = price >= price - price
    low_a = max(low_a, bits) if dearer else low_a
    high_b = min(high_b, bits) if dearer else high_b
    high_a = high_a if dearer else min(high_a, bits)
    low_b = low_b if dearer else max(low_b, bits)
    return low_a, high_a, low_b, high_b


@_exact
def _sizes(value, cost, largest_v, largest_c, small, mask, least):
    """Bits of the largest sizes so far; below 0 once a cost other than 0 was smaller than ``least``."""
    size = _as(_bits(cost) & mask, mask)
    small = _as(small | ((size - least) & -size), mask)
    return max(_as(_bits(value) & mask, mask), largest_v), max(size, largest_c), small


@_exact
def _take(low, high, cost, number, below, last, length, steps, top):
    """Add an interval's length within the range; mark the arm if it ends there, take its cost if it ends above."""
    upper, lower = min(max(high, below), last), min(max(low, below), last)
    left = upper > lower
    length = _as(length + (upper - lower), below) if left else length
    steps = steps | np.int32(1 << number) if left & (high < last) else steps
    top = cost if left & (high >= last) else top
    return length, steps, top


@_exact
def intervals(v, c, at, stride_v, stride_c, arms, some, n, below, last, mask, least, ends, steps, odd, top):
    """The intervals of n users from position ``at``, as far as they lie in the range above ``below`` up to ``last``.

    Written out arm by arm, so that all numbers of a user stay in registers. The compiler knows the length of ``some``
    and drops the arms beyond it; below it, the last of all arms comes again, and is left no interval.

    Args:
        some: at least K of anything.
        mask: all bits but the sign; least: bits of a cost.
        ends: as many rows of ``PITCH``, gets the bits of the upper ends.
        steps: a bit per arm whose interval ends below ``last``, where a cheaper arm takes over; none for the odd.
        odd: whether a user's intervals leave a gap.
        top: cost of the arm at ``last``; 0 for the odd.

    Returns:
        Bits of the largest absolute value and cost; whether a cost other than 0 is smaller than ``least``.
    """
    written, most, zero = len(some), arms - 1, v.dtype.type(0)
    at, sv, sc, nothing, none = np.uintp(at), np.uintp(stride_v), np.uintp(stride_c), _as(0, mask), _as(~mask, mask)
    n1, n2, n3, n4, n5, n6, n7 = (
        min(1, most),
        min(2, most),
        min(3, most),
        min(4, most),
        min(5, most),
        min(6, most),
        most,
    )
    whole = _as(last - below, mask)
    largest_v, largest_c, small = nothing, nothing, nothing
    for i in range(np.uintp(n)):
        v0, c0, l0, h0 = zero, zero, none, mask
        v1, c1, l1, h1 = zero, zero, none, mask
        v2, c2, l2, h2 = zero, zero, none, mask
        v3, c3, l3, h3 = zero, zero, none, mask
        v4, c4, l4, h4 = zero, zero, none, mask
        v5, c5, l5, h5 = zero, zero, none, mask
        v6, c6, l6, h6 = zero, zero, none, mask
        v7, c7, l7, h7 = zero, zero, none, mask
        v0, c0 = v[at + i], c[at + i]
        largest_v, largest_c, small = _sizes(v0, c0, largest_v, largest_c, small, mask, least)
        if written > 1:
            v1, c1 = v[at + np.uintp(n1) * sv + i], c[at + np.uintp(n1) * sc + i]
            largest_v, largest_c, small = _sizes(v1, c1, largest_v, largest_c, small, mask, least)
            l0, h0, l1, h1 = meet(v0, c0, v1, c1, l0, h0, l1, h1, 0, n1, mask)
        if written > 2:
            v2, c2 = v[at + np.uintp(n2) * sv + i], c[at + np.uintp(n2) * sc + i]
            largest_v, largest_c, small = _sizes(v2, c2, largest_v, largest_c, small, mask, least)
            l0, h0, l2, h2 = meet(v0, c0, v2, c2, l0, h0, l2, h2, 0, n2, mask)
            l1, h1, l2, h2 = meet(v1, c1, v2, c2, l1, h1, l2, h2, n1, n2, mask)
        if written > 3:
            v3, c3 = v[at + np.uintp(n3) * sv + i], c[at + np.uintp(n3) * sc + i]
            largest_v, largest_c, small = _sizes(v3, c3, largest_v, largest_c, small, mask, least)
            l0, h0, l3, h3 = meet(v0, c0, v3, c3, l0, h0, l3, h3, 0, n3, mask)
            l1, h1, l3, h3 = meet(v1, c1, v3, c3, l1, h1, l3, h3, n1, n3, mask)
            l2, h2, l3, h3 = meet(v2, c2, v3, c3, l2, h2, l3, h3, n2, n3, mask)
        if written > 4:
            v4, c4 = v[at + np.uintp(n4) * sv + i], c[at + np.uintp(n4) * sc + i]
            largest_v, largest_c, small = _sizes(v4, c4, largest_v, largest_c, small, mask, least)
            l0, h0, l4, h4 = meet(v0, c0, v4, c4, l0, h0, l4, h4, 0, n4, mask)
            l1, h1, l4, h4 = meet(v1, c1, v4, c4, l1, h1, l4, h4, n1, n4, mask)
            l2, h2, l4, h4 = meet(v2, c2, v4, c4, l2, h2, l4, h4, n2, n4, mask)
            l3, h3, l4, h4 = meet(v3, c3, v4, c4, l3, h3, l4, h4, n3, n4, mask)
        if written > 5:
            v5, c5 = v[at + np.uintp(n5) * sv + i], c[at + np.uintp(n5) * sc + i]
            largest_v, largest_c, small = _sizes(v5, c5, largest_v, largest_c, small, mask, least)
            l0, h0, l5, h5 = meet(v0, c0, v5, c5, l0, h0, l5, h5, 0, n5, mask)
            l1, h1, l5, h5 = meet(v1, c1, v5, c5, l1, h1, l5, h5, n1, n5, mask)
            l2, h2, l5, h5 = meet(v2, c2, v5, c5, l2, h2, l5, h5, n2, n5, mask)
            l3, h3, l5, h5 = meet(v3, c3, v5, c5, l3, h3, l5, h5, n3, n5, mask)
            l4, h4, l5, h5 = meet(v4, c4, v5, c5, l4, h4, l5, h5, n4, n5, mask)
        if written > 6:
            v6, c6 = v[at + np.uintp(n6) * sv + i], c[at + np.uintp(n6) * sc + i]
            largest_v, largest_c, small = _sizes(v6, c6, largest_v, largest_c, small, mask, least)
            l0, h0, l6, h6 = meet(v0, c0, v6, c6, l0, h0, l6, h6, 0, n6, mask)
            l1, h1, l6, h6 = meet(v1, c1, v6, c6, l1, h1, l6, h6, n1, n6, mask)
            l2, h2, l6, h6 = meet(v2, c2, v6, c6, l2, h2, l6, h6, n2, n6, mask)
            l3, h3, l6, h6 = meet(v3, c3, v6, c6, l3, h3, l6, h6, n3, n6, mask)
            l4, h4, l6, h6 = meet(v4, c4, v6, c6, l4, h4, l6, h6, n4, n6, mask)
            l5, h5, l6, h6 = meet(v5, c5, v6, c6, l5, h5, l6, h6, n5, n6, mask)
        if written > 7:
            v7, c7 = v[at + np.uintp(n7) * sv + i], c[at + np.uintp(n7) * sc + i]
            largest_v, largest_c, small = _sizes(v7, c7, largest_v, largest_c, small, mask, least)
            l0, h0, l7, h7 = meet(v0, c0, v7, c7, l0, h0, l7, h7, 0, n7, mask)
            l1, h1, l7, h7 = meet(v1, c1, v7, c7, l1, h1, l7, h7, n1, n7, mask)
            l2, h2, l7, h7 = meet(v2, c2, v7, c7, l2, h2, l7, h7, n2, n7, mask)
            l3, h3, l7, h7 = meet(v3, c3, v7, c7, l3, h3, l7, h7, n3, n7, mask)
            l4, h4, l7, h7 = meet(v4, c4, v7, c7, l4, h4, l7, h7, n4, n7, mask)
            l5, h5, l7, h7 = meet(v5, c5, v7, c7, l5, h5, l7, h7, n5, n7, mask)
            l6, h6, l7, h7 = meet(v6, c6, v7, c7, l6, h6, l7, h7, n6, n7, mask)
        length, marks, paid, to = nothing, np.int32(0), zero, i
        ends[to] = h0
        length, marks, paid = _take(l0, h0, c0, 0, below, last, length, marks, paid)
        if written > 1:
            to += np.uintp(PITCH)
            ends[to] = h1
            length, marks, paid = _take(l1, h1, c1, 1, below, last, length, marks, paid)
        if written > 2:
            to += np.uintp(PITCH)
            ends[to] = h2
            length, marks, paid = _take(l2, h2, c2, 2, below, last, length, marks, paid)
        if written > 3:
            to += np.uintp(PITCH)
            ends[to] = h3
            length, marks, paid = _take(l3, h3, c3, 3, below, last, length, marks, paid)
        if written > 4:
            to += np.uintp(PITCH)
            ends[to] = h4
            length, marks, paid = _take(l4, h4, c4, 4, below, last, length, marks, paid)
        if written > 5:
            to += np.uintp(PITCH)
            ends[to] = h5
            length, marks, paid = _take(l5, h5, c5, 5, below, last, length, marks, paid)
        if written > 6:
            to += np.uintp(PITCH)
            ends[to] = h6
            length, marks, paid = _take(l6, h6, c6, 6, below, last, length, marks, paid)
        if written > 7:
            to += np.uintp(PITCH)
            ends[to] = h7
            length, marks, paid = _take(l7, h7, c7, 7, below, last, length, marks, paid)
        fills = length == whole
        steps[i] = np.uint8(marks if fills else np.int32(0))
        odd[i] = np.int8(0) if fills else np.int8(1)
        top[i] = paid if fills else zero
    return largest_v, largest_c, small < 0


@_exact
def all_ends(v, c, at, stride_v, stride_c, arms, mask, lows, highs):
    """Bits of the ends of the intervals of one user, for the odd."""
    for j in range(arms):
        lows[j], highs[j] = ~mask, mask
    for j in range(arms):
        for i in range(j):
            va, ca, vb, cb = v[at + i * stride_v], c[at + i * stride_c], v[at + j * stride_v], c[at + j * stride_c]
            lows[i], highs[i], lows[j], highs[j] = meet(
                va, ca, vb, cb, lows[i], highs[i], lows[j], highs[j], i, j, mask
            )
