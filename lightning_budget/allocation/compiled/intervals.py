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

import numba as nb
import numpy as np

from lightning_budget.allocation.compiled.blocks import PITCH, bring_in
from lightning_budget.allocation.compiled.few import collect
from lightning_budget.allocation.compiled.sums import add_total
from lightning_budget.allocation.compiled.together import NEAR

BLOCK = 1024
"""Users at a time: fewer stay nearer in the cache, and of more the processor foresees the reading."""

SPREAD = 32
"""Slots for what lies below all others, and as many for what lies above: one would be written by every user."""

WINDOW = 1 << 13
"""Users between two times that the integers are emptied."""

_BITS = 45
"""Of an integer for one cost, so that ``WINDOW`` users with eight arms do not overflow 63."""

_LARGEST = 2.0**100
"""Sizes whose differences and products cannot overflow in single precision."""

_SMALLEST = 2.0**-100

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def _fill(x, number):
    for i in range(np.uintp(len(x))):
        x[i] = number


@_exact
def _meet(v, c, va, ca, vb, cb, low, high, a, b, n):
    """Narrow the intervals of two arms of n users by the slope between them; of equal arms the second is left none."""
    va, ca, vb, cb, a, b = np.uintp(va), np.uintp(ca), np.uintp(vb), np.uintp(cb), np.uintp(a), np.uintp(b)
    inf, zero = v.dtype.type(np.inf), v.dtype.type(0)
    for i in range(np.uintp(n)):
        price = c[cb + i] - c[ca + i]
        slope = (v[vb + i] - v[va + i]) / price
        slope = slope if slope == slope else -inf
        dearer = price >= zero
        low_a, high_a, low_b, high_b = low[a + i], high[a + i], low[b + i], high[b + i]
        over, under = slope if dearer else -inf, inf if dearer else slope
        low[a + i] = over if over > low_a else low_a
        high[a + i] = under if under < high_a else high_a
        over, under = -inf if dearer else slope, slope if dearer else inf
        low[b + i] = over if over > low_b else low_b
        high[b + i] = under if under < high_b else high_b


@_exact
def _place(low, high, at, n, first, shift, top, last, places, lists):
    """Slots of both ends of one arm's intervals, the lower end's in the upper half of an integer; and who has any.

    None is wanted whose upper end lies above ``last``.
    """
    at, zero = np.uintp(at), first ^ first
    for i in range(np.uintp(n)):
        x, y = max(low[at + i], zero), high[at + i]
        own = zero + np.int32(i & np.uintp(SPREAD - 1))
        from_slot = ((x - first) >> shift) + np.int32(SPREAD) if x >= first else own
        to_slot = ((y - first) >> shift) + np.int32(SPREAD)
        places[i] = np.int32(min(from_slot, top + own)) << np.int32(16) | np.int32(min(to_slot, top + own))
        # One that rounding alone may have emptied is kept: at most, it adds to a slot what it takes from the next.
        lists[i] = np.int8((x - y < NEAR) & (y >= first) & (y <= last))


@_exact
def _largest(bits, at, n, mask, found):
    at = np.uintp(at)
    for i in range(np.uintp(n)):
        found = max(found, bits[at + i] & mask)
    return found


@_exact
def _rounds(c, at, n, scale):
    """Whether an integer would lose some of a cost."""
    at, lost = np.uintp(at), np.int64(0)
    for i in range(np.uintp(n)):
        x = np.float64(c[at + i]) * scale
        lost |= np.int64(np.float64(np.int64(x)) != x)
    return lost != 0


@_exact
def _add(c, at, scale, places, position, m, high, row, start, is_open, slots, rows, ends, count):
    """Add the costs of m intervals to their slots, and list the upper ends that lie in open slots."""
    at, row = np.uintp(at), np.uintp(row)
    for t in range(m):
        i = position[t]
        x, both = np.int64(np.float64(c[at + i]) * scale), np.uint32(places[i])
        to_slot = np.uintp(both & np.uint32(0xFFFF))
        slots[to_slot] += x
        slots[np.uintp(both >> np.uint32(16))] -= x
        rows[count], ends[count] = start + i, high[row + i]
        count += np.uintp(is_open[to_slot])
    return count


@_exact
def _add_rest(c, at, scale, places, position, m, slots):
    """Add what the integers of :func:`_add` leave out; returns whether that did not round."""
    at, exact = np.uintp(at), True
    for t in range(m):
        i = position[t]
        x, both = np.float64(c[at + i]) * scale, np.uint32(places[i])
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
def pass_over_intervals(
    v, c, bits_v, bits_c, stride, arms, start, stop, first, shift, top, mask, is_open, sums, rows, ends
):
    """Add up the spend by slots for users from ``start`` until ``stop`` or until the lists are full.

    Args:
        v, c: flat memory of ``[K, N]``; bits: the same as integers; stride: of arm and user, of v then c.
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
    piece_bits_v, piece_bits_c = piece_v.view(bits_v.dtype), piece_c.view(bits_v.dtype)
    low, high = np.empty(arms * PITCH, v.dtype), np.empty(arms * PITCH, v.dtype)
    low_bits, high_bits = low.view(bits_v.dtype), high.view(bits_v.dtype)
    sizes = np.empty(arms, bits_v.dtype)
    last = first + (bits_v.dtype.type(top - SPREAD) << shift)
    places, lists, position = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int8), np.empty(BLOCK + 1, np.uintp)
    slots, rests = np.zeros(len(sums), np.int64), np.zeros(len(sums), np.int64)
    one_bits = np.zeros(1, bits_v.dtype)
    one = one_bits.view(v.dtype)
    inf, zero = v.dtype.type(np.inf), mask ^ mask
    bound, scale, used, fits = 0.0, 0.0, False, True
    count, since = np.uintp(0), start
    a = start
    while a < stop and fits:
        n = min(BLOCK, stop - a)
        if count + np.uintp(n * arms) > np.uintp(len(rows)):
            break
        bv, bc, ibv, ibc, at, sv, sc = v, c, bits_v, bits_c, a, stride[0], stride[2]
        if not direct:
            bring_in(v, stride[0], stride[1], arms, a, n, piece_v)
            bring_in(c, stride[2], stride[3], arms, a, n, piece_c)
            bv, bc, ibv, ibc, at, sv, sc = piece_v, piece_c, piece_bits_v, piece_bits_c, 0, PITCH, PITCH
        largest_v, largest_c = zero, zero
        _fill(low, -inf)
        _fill(high, inf)
        for j in range(arms):
            largest_v = _largest(ibv, at + j * sv, n, mask, largest_v)
            sizes[j] = _largest(ibc, at + j * sc, n, mask, zero)
            largest_c = max(largest_c, sizes[j])
            for k in range(j):
                _meet(bv, bc, at + k * sv, at + k * sc, at + j * sv, at + j * sc, low, high, k * PITCH, j * PITCH, n)
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
            scale = math.ldexp(1.0, _BITS - math.frexp(bound)[1])
        for j in range(arms):
            # An arm that is free for all of them adds nothing; ends of its intervals are listed all the same.
            ends_at = last if sizes[j] == zero else mask
            _place(low_bits, high_bits, j * PITCH, n, first, shift, top, ends_at, places, lists)
            m = collect(lists, n, position)
            if sizes[j] != zero and _rounds(bc, at + j * sc, n, scale):
                fits = _add_rest(bc, at + j * sc, scale, places, position, m, rests) and fits
                used = True
            count = _add(
                bc,
                at + j * sc,
                scale,
                places,
                position,
                m,
                high_bits,
                j * PITCH,
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
