"""The pass that adds up the spend of all multipliers at once, for at most eight arms, block by block.

An arm is chosen between two multipliers: above the slopes to all dearer arms, below those to all cheaper ones. These
ends fall into slots, equally wide in the bits of the slope, which for positive floats grow with it. A slot's sum is
what the spend grows by when the multiplier passes it downwards; the sum of all slots above is the spend at its upper
end.

A slope is three roundings off in the precision of the input, whatever the sizes, so it only ever says that an end lies
within ``NEAR`` floats. Costs are added as integers, which do not round.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from lightning_budget.allocation.compiled.blocks import PITCH, bring_in
from lightning_budget.allocation.compiled.few import collect, collect_rare
from lightning_budget.allocation.compiled.sums import add_total
from lightning_budget.allocation.compiled.together import NEAR

BLOCK = 1024
"""Users at a time: fewer stay nearer in the cache, and of more the processor foresees the reading."""

SPREAD = 32
"""Slots for what lies below all others, and as many for what lies above: one would be written by every user."""

WINDOW = 1 << 13
"""Users between two times that the integers are emptied."""

WRITTEN = (2, 5, 8)
"""Numbers of arms that code is made for; it takes seconds to make."""

_BITS = 45
"""Of an integer for one cost, so that ``WINDOW`` users with eight arms do not overflow 63."""

_LARGEST = 2.0**100
"""Sizes whose differences and products cannot overflow in single precision."""

_SMALLEST = 2.0**-100

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


def _reinterpret(typing, x):
    """The bits of a float as an integer."""
    del typing
    integer = types.int32 if x == types.float32 else types.int64

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return integer(x), build


_bits: Any = intrinsic(_reinterpret)


@_exact
def _meet(va, ca, vb, cb, low_a, high_a, low_b, high_b, none, zero):
    """Narrow the intervals of two arms by the slope between them; of equal arms the second is left ``none``."""
    price = cb - ca
    slope = (vb - va) / price
    slope = slope if slope == slope else none
    if price >= zero:
        low_a = slope if slope > low_a else low_a
        high_b = slope if slope < high_b else high_b
    else:
        high_a = slope if slope < high_a else high_a
        low_b = slope if slope > low_b else low_b
    return low_a, high_a, low_b, high_b


@_exact
def _sizes(value, cost, largest_v, largest_c, small, mask, least):
    """Bits of the largest sizes so far, and whether a cost other than 0 is smaller than ``least``."""
    size = _bits(cost) & mask
    small |= np.int32((size < least) & (size != 0))
    return max(_bits(value) & mask, largest_v), max(size, largest_c), small


@_exact
def _place(low, high, cost, own, first, shift, top, last):
    """Slots of both ends of an interval, the lower end's in the upper half of an integer, and whether it is wanted.

    None is that ends below all slots; nor one of a free arm that ends above ``last``, for it adds nothing.
    """
    x = max(low, first ^ first)
    from_slot = ((x - first) >> shift) + np.int32(SPREAD) if x >= first else own
    to_slot = ((high - first) >> shift) + np.int32(SPREAD)
    both = np.int32(min(from_slot, top + own)) << np.int32(16) | np.int32(min(to_slot, top + own))
    # One that rounding alone may have emptied is kept: at most, it adds to a slot what it takes from the next.
    return both, np.int8((x - high < NEAR) & (high >= first) & ((high <= last) | (cost != 0)))


@_exact
def _intervals(v, c, at, stride_v, stride_c, arms, some, n, first, shift, top, mask, least, ends, places, lists):
    """The intervals of n users from position ``at``: bits of upper ends, slots of both ends, and which are wanted.

    Written out arm by arm, so that all numbers of a user stay in registers. The compiler knows the length of ``some``
    and drops the arms beyond it; below it, the last of all arms comes again, and is left no interval.

    Args:
        some: at least K of anything; ends, places, lists: as many rows of ``PITCH``, one an arm.

    Returns:
        Bits of the largest absolute value and cost; whether a cost other than 0 is smaller than ``least``, in bits.
    """
    written, most, inf, zero = len(some), arms - 1, v.dtype.type(np.inf), v.dtype.type(0)
    at, sv, sc, nothing = np.uintp(at), np.uintp(stride_v), np.uintp(stride_c), first ^ first
    last = first + ((top - np.int32(SPREAD)) << shift)
    largest_v, largest_c, small = nothing, nothing, np.int32(0)
    for i in range(np.uintp(n)):
        v0, c0, l0, h0 = zero, zero, -inf, inf
        v1, c1, l1, h1 = zero, zero, -inf, inf
        v2, c2, l2, h2 = zero, zero, -inf, inf
        v3, c3, l3, h3 = zero, zero, -inf, inf
        v4, c4, l4, h4 = zero, zero, -inf, inf
        v5, c5, l5, h5 = zero, zero, -inf, inf
        v6, c6, l6, h6 = zero, zero, -inf, inf
        v7, c7, l7, h7 = zero, zero, -inf, inf
        v0, c0 = v[at + i], c[at + i]
        largest_v, largest_c, small = _sizes(v0, c0, largest_v, largest_c, small, mask, least)
        if written > 1:
            v1, c1 = v[at + np.uintp(min(1, most)) * sv + i], c[at + np.uintp(min(1, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v1, c1, largest_v, largest_c, small, mask, least)
            l0, h0, l1, h1 = _meet(v0, c0, v1, c1, l0, h0, l1, h1, -inf, zero)
        if written > 2:
            v2, c2 = v[at + np.uintp(min(2, most)) * sv + i], c[at + np.uintp(min(2, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v2, c2, largest_v, largest_c, small, mask, least)
            l0, h0, l2, h2 = _meet(v0, c0, v2, c2, l0, h0, l2, h2, -inf, zero)
            l1, h1, l2, h2 = _meet(v1, c1, v2, c2, l1, h1, l2, h2, -inf, zero)
        if written > 3:
            v3, c3 = v[at + np.uintp(min(3, most)) * sv + i], c[at + np.uintp(min(3, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v3, c3, largest_v, largest_c, small, mask, least)
            l0, h0, l3, h3 = _meet(v0, c0, v3, c3, l0, h0, l3, h3, -inf, zero)
            l1, h1, l3, h3 = _meet(v1, c1, v3, c3, l1, h1, l3, h3, -inf, zero)
            l2, h2, l3, h3 = _meet(v2, c2, v3, c3, l2, h2, l3, h3, -inf, zero)
        if written > 4:
            v4, c4 = v[at + np.uintp(min(4, most)) * sv + i], c[at + np.uintp(min(4, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v4, c4, largest_v, largest_c, small, mask, least)
            l0, h0, l4, h4 = _meet(v0, c0, v4, c4, l0, h0, l4, h4, -inf, zero)
            l1, h1, l4, h4 = _meet(v1, c1, v4, c4, l1, h1, l4, h4, -inf, zero)
            l2, h2, l4, h4 = _meet(v2, c2, v4, c4, l2, h2, l4, h4, -inf, zero)
            l3, h3, l4, h4 = _meet(v3, c3, v4, c4, l3, h3, l4, h4, -inf, zero)
        if written > 5:
            v5, c5 = v[at + np.uintp(min(5, most)) * sv + i], c[at + np.uintp(min(5, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v5, c5, largest_v, largest_c, small, mask, least)
            l0, h0, l5, h5 = _meet(v0, c0, v5, c5, l0, h0, l5, h5, -inf, zero)
            l1, h1, l5, h5 = _meet(v1, c1, v5, c5, l1, h1, l5, h5, -inf, zero)
            l2, h2, l5, h5 = _meet(v2, c2, v5, c5, l2, h2, l5, h5, -inf, zero)
            l3, h3, l5, h5 = _meet(v3, c3, v5, c5, l3, h3, l5, h5, -inf, zero)
            l4, h4, l5, h5 = _meet(v4, c4, v5, c5, l4, h4, l5, h5, -inf, zero)
        if written > 6:
            v6, c6 = v[at + np.uintp(min(6, most)) * sv + i], c[at + np.uintp(min(6, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v6, c6, largest_v, largest_c, small, mask, least)
            l0, h0, l6, h6 = _meet(v0, c0, v6, c6, l0, h0, l6, h6, -inf, zero)
            l1, h1, l6, h6 = _meet(v1, c1, v6, c6, l1, h1, l6, h6, -inf, zero)
            l2, h2, l6, h6 = _meet(v2, c2, v6, c6, l2, h2, l6, h6, -inf, zero)
            l3, h3, l6, h6 = _meet(v3, c3, v6, c6, l3, h3, l6, h6, -inf, zero)
            l4, h4, l6, h6 = _meet(v4, c4, v6, c6, l4, h4, l6, h6, -inf, zero)
            l5, h5, l6, h6 = _meet(v5, c5, v6, c6, l5, h5, l6, h6, -inf, zero)
        if written > 7:
            v7, c7 = v[at + np.uintp(min(7, most)) * sv + i], c[at + np.uintp(min(7, most)) * sc + i]
            largest_v, largest_c, small = _sizes(v7, c7, largest_v, largest_c, small, mask, least)
            l0, h0, l7, h7 = _meet(v0, c0, v7, c7, l0, h0, l7, h7, -inf, zero)
            l1, h1, l7, h7 = _meet(v1, c1, v7, c7, l1, h1, l7, h7, -inf, zero)
            l2, h2, l7, h7 = _meet(v2, c2, v7, c7, l2, h2, l7, h7, -inf, zero)
            l3, h3, l7, h7 = _meet(v3, c3, v7, c7, l3, h3, l7, h7, -inf, zero)
            l4, h4, l7, h7 = _meet(v4, c4, v7, c7, l4, h4, l7, h7, -inf, zero)
            l5, h5, l7, h7 = _meet(v5, c5, v7, c7, l5, h5, l7, h7, -inf, zero)
            l6, h6, l7, h7 = _meet(v6, c6, v7, c7, l6, h6, l7, h7, -inf, zero)
        own, to = nothing + np.int32(i & np.uintp(SPREAD - 1)), i
        ends[to] = _bits(h0)
        places[to], lists[to] = _place(_bits(l0), ends[to], c0, own, first, shift, top, last)
        if written > 1:
            to += np.uintp(PITCH)
            ends[to] = _bits(h1)
            places[to], lists[to] = _place(_bits(l1), ends[to], c1, own, first, shift, top, last)
        if written > 2:
            to += np.uintp(PITCH)
            ends[to] = _bits(h2)
            places[to], lists[to] = _place(_bits(l2), ends[to], c2, own, first, shift, top, last)
        if written > 3:
            to += np.uintp(PITCH)
            ends[to] = _bits(h3)
            places[to], lists[to] = _place(_bits(l3), ends[to], c3, own, first, shift, top, last)
        if written > 4:
            to += np.uintp(PITCH)
            ends[to] = _bits(h4)
            places[to], lists[to] = _place(_bits(l4), ends[to], c4, own, first, shift, top, last)
        if written > 5:
            to += np.uintp(PITCH)
            ends[to] = _bits(h5)
            places[to], lists[to] = _place(_bits(l5), ends[to], c5, own, first, shift, top, last)
        if written > 6:
            to += np.uintp(PITCH)
            ends[to] = _bits(h6)
            places[to], lists[to] = _place(_bits(l6), ends[to], c6, own, first, shift, top, last)
        if written > 7:
            to += np.uintp(PITCH)
            ends[to] = _bits(h7)
            places[to], lists[to] = _place(_bits(l7), ends[to], c7, own, first, shift, top, last)
    return largest_v, largest_c, small != 0


@_exact
def _rounds(c, at, n, scale):
    """Whether an integer would lose some of a cost."""
    at, lost = np.uintp(at), np.int64(0)
    for i in range(np.uintp(n)):
        x = np.float64(c[at + i]) * scale
        lost |= np.int64(np.float64(np.int64(x)) != x)
    return lost != 0


@_exact
def _add(c, at, scale, places, lifted, row, position, m, start, is_open, slots, rows, ends, count):
    """Add the costs of m intervals to their slots, and list the upper ends that lie in open slots."""
    at, row = np.uintp(at), np.uintp(row)
    for t in range(m):
        i = position[t]
        x, both = np.int64(np.float64(c[at + i]) * scale), np.uint32(places[row + i])
        to_slot = np.uintp(both & np.uint32(0xFFFF))
        slots[to_slot] += x
        slots[np.uintp(both >> np.uint32(16))] -= x
        rows[count], ends[count] = start + i, lifted[row + i]
        count += np.uintp(is_open[to_slot])
    return count


@_exact
def _add_rest(c, at, scale, places, row, position, m, slots):
    """Add what the integers of :func:`_add` leave out; returns whether that did not round."""
    at, row, exact = np.uintp(at), np.uintp(row), True
    for t in range(m):
        i = position[t]
        x, both = np.float64(c[at + i]) * scale, np.uint32(places[row + i])
        rest = (x - np.float64(np.int64(x))) * 2.0**_BITS
        part = np.int64(rest)
        exact = exact and np.float64(part) == rest
        slots[np.uintp(both & np.uint32(0xFFFF))] += part
        slots[np.uintp(both >> np.uint32(16))] -= part
    return exact


@_exact
def within(ends, first, shift, wanted, position):
    """Positions of bits of slopes whose slot is wanted; returns how many."""
    count = np.uintp(0)
    for i in range(np.uintp(len(ends))):
        position[count] = i
        count += np.uintp(wanted[(ends[i] - first) >> shift])
    return count


@_exact
def _empty(slots, unit, sums):
    """Move integers, times a power of two, to ``sums [:, 2]``, floats and what their rounding left out."""
    for t in range(len(slots)):
        x = slots[t]
        if x != 0:
            coarse = (x >> 31) << 31
            add_total(np.float64(coarse) * unit, sums[t])
            add_total(np.float64(x - coarse) * unit, sums[t])
            slots[t] = 0


@_exact
def pass_over_intervals(v, c, stride, arms, some, start, stop, first, shift, top, mask, is_open, sums, rows, ends):
    """Add up the spend by slots for users from ``start`` until ``stop`` or until the lists are full.

    Args:
        v, c: flat memory of ``[K, N]``; stride: of arm and user, of v then c.
        some: at least K of anything, see ``WRITTEN``.
        first: bits of the lowest slope of a slot; shift: a slot's width as a power of two; top: the slot above all.
        mask: all bits but the sign.
        is_open: ``[top + SPREAD]``, of whose slots upper ends are listed.
        sums: ``[top + SPREAD, 2]``, each a float and the rest.
        rows, ends: lists, of users less ``start`` and bits of slopes.

    Returns:
        Where it stopped, how many were listed, and whether all numbers are finite and of sizes that fit.
    """
    direct = stride[1] == 1 and stride[3] == 1
    length = 1 if direct else arms * PITCH
    piece_v, piece_c = np.empty(length, v.dtype), np.empty(length, v.dtype)
    lifted, places = np.empty(len(some) * PITCH, ends.dtype), np.empty(len(some) * PITCH, np.int32)
    lists, position = np.zeros(len(some) * PITCH, np.int8), np.empty(BLOCK + 1, np.uintp)
    words = np.empty(BLOCK // 8 + 1, np.uintp)
    rare = np.zeros(arms, np.bool_)
    slots, rests = np.zeros(len(sums), np.int64), np.zeros(len(sums), np.int64)
    one_bits = np.zeros(1, ends.dtype)
    one = one_bits.view(v.dtype)
    digits = 24 if v.itemsize == 4 else 53
    bound, scale, least, used, fits = 0.0, 0.0, mask, False, True
    count, since = np.uintp(0), start
    a = start
    while a < stop and fits:
        n = min(BLOCK, stop - a)
        if count + np.uintp(n * arms) > np.uintp(len(rows)):
            break
        bv, bc, at, sv, sc = v, c, a, stride[0], stride[2]
        if not direct:
            bring_in(v, stride[0], stride[1], arms, a, n, piece_v)
            bring_in(c, stride[2], stride[3], arms, a, n, piece_c)
            bv, bc, at, sv, sc = piece_v, piece_c, 0, PITCH, PITCH
        largest_v, largest_c, small = _intervals(
            bv, bc, at, sv, sc, arms, some, n, first, shift, top, mask, least, lifted, places, lists
        )
        one_bits[0] = largest_v
        fits = np.float64(one[0]) < _LARGEST
        one_bits[0] = largest_c
        size = np.float64(one[0])
        fits = fits and size < _LARGEST
        if size > bound or a - since >= WINDOW:
            _empty(slots, 1 / scale if scale > 0 else 0.0, sums)
            if used:
                _empty(rests, 2.0**-_BITS / scale, sums)
            since, used = a, False
        if size > bound:
            bound = 2 * max(size, _SMALLEST)
            exponent = math.frexp(bound)[1]
            scale = math.ldexp(1.0, _BITS - exponent)
            one[0] = math.ldexp(1.0, exponent - _BITS + digits - 1)
            least = one_bits[0]
            small = True
        for j in range(arms):
            row = j * PITCH
            if rare[j]:
                lists[row + n : row + n + 8] = 0
                m = collect_rare(lists[row : row + PITCH], n, words, position)
            else:
                m = collect(lists[row : row + PITCH], n, position)
            rare[j] = np.uintp(16) * m < np.uintp(n)
            if small and _rounds(bc, at + j * sc, n, scale):
                fits = _add_rest(bc, at + j * sc, scale, places, row, position, m, rests) and fits
                used = True
            count = _add(
                bc,
                at + j * sc,
                scale,
                places,
                lifted,
                row,
                position,
                m,
                a - start,
                is_open,
                slots,
                rows,
                ends,
                count,
            )
        a += n
    if scale > 0:
        _empty(slots, 1 / scale, sums)
        _empty(rests, 2.0**-_BITS / scale, sums)
    return a, count, fits
