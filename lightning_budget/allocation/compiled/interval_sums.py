"""The pass that adds up the spend of all multipliers at once, for at most eight arms, block by block.

The ends of intervals fall into slots, equally wide in the bits of a slope. A slot's sum is what the spend grows by when
the multiplier passes it downwards; the sum of all slots above is the spend at its upper end.

A slope is off by roundings in the precision of the input, whatever the sizes, and by the bits of a pair, so it only
ever says that an end lies within ``NEAR`` floats. Costs are added as integers, which do not round.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from lightning_budget.allocation.compiled.blocks import PITCH, bring_in
from lightning_budget.allocation.compiled.few import collect_rare
from lightning_budget.allocation.compiled.intervals import PAIR, all_ends, intervals
from lightning_budget.allocation.compiled.sums import add_total
from lightning_budget.allocation.compiled.together import NEAR

BLOCK = 1024
"""Users at a time: fewer stay nearer in the cache, and of more the processor foresees the reading."""

_BITS = 45
"""Of an integer for one cost, so that those of many users add up to ``_FULL`` before they are emptied."""

_FULL = 2.0**62

_MOST_OF_ONE = 10
"""Times its largest cost that a user adds to a slot at most: steps next to each other make up one, ends do not."""

_LARGEST = 2.0**100
"""Sizes whose differences and products cannot overflow in single precision."""

_SMALLEST = 2.0**-100

_LOWEST = np.array([(x & -x).bit_length() - 1 if x else 0 for x in range(256)], np.uint8)
"""Number of the lowest bit of a byte."""

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def _rounds(c, at, n, scale):
    """Whether an integer would lose some of a cost."""
    at, lost = np.uintp(at), np.int64(0)
    for i in range(np.uintp(n)):
        x = np.float64(c[at + i]) * scale
        lost |= np.int64(np.float64(np.int64(x)) != x)
    return lost != 0


@_exact
def _rest(x):
    """What an integer leaves out, as another one, and whether that rounds."""
    rest = (x - np.float64(np.int64(x))) * 2.0**_BITS
    part = np.int64(rest)
    return part, np.float64(part) != rest


@_exact
def _total(x, n, scale):
    total = np.int64(0)
    for i in range(np.uintp(n)):
        total += np.int64(np.float64(x[i]) * scale)
    return total


@_exact
def _total_rest(x, n, scale):
    total, rounded = np.int64(0), False
    for i in range(np.uintp(n)):
        part, rounds = _rest(np.float64(x[i]) * scale)
        total, rounded = total + part, rounded | rounds
    return total, rounded


@_exact
def _with_steps(steps, n, position):
    """Positions of users with a step, without a branch that could be mispredicted; returns how many."""
    m = np.uintp(0)
    for i in range(np.uintp(n)):
        position[m] = i
        m += np.uintp(steps[i] != 0)
    return m


@_exact
def _add_steps(
    c,
    at,
    stride,
    scale,
    lost,
    ends,
    steps,
    position,
    m,
    first,
    shift,
    start,
    is_open,
    slots,
    rests,
    rows,
    listed,
    count,
):
    """Add what the spend grows by at each step of m users, and list those in open slots; takes the marks away.

    Args:
        lost: whether integers lose some of a cost, which then goes to ``rests``.

    Returns:
        How many are listed, and whether the rests rounded.
    """
    at, stride, rounded = np.uintp(at), np.uintp(stride), False
    while m > 0:
        more = np.uintp(0)
        for t in range(m):
            i = position[t]
            marks = np.uintp(steps[i])
            left = marks & (marks - np.uintp(1))
            arm = np.uintp(_LOWEST[marks])
            end = ends[arm * np.uintp(PITCH) + i]
            pair = np.uintp(end & PAIR)
            other = (pair >> np.uintp(3)) ^ (pair & np.uintp(7)) ^ arm
            dear = np.float64(c[at + arm * stride + i]) * scale
            cheap = np.float64(c[at + other * stride + i]) * scale
            slot = np.uintp((end - first) >> shift)
            slots[slot] += np.int64(dear) - np.int64(cheap)
            if lost:
                (a, rounds_a), (b, rounds_b) = _rest(dear), _rest(cheap)
                rests[slot] += a - b
                rounded = rounded | rounds_a | rounds_b
            rows[count], listed[count] = start + i, end
            count += np.uintp(is_open[slot])
            steps[i] = left
            position[more] = i
            more += np.uintp(left != 0)
        m = more
    return count, rounded


@_exact
def _add_odd(
    v, c, at, stride_v, stride_c, arms, scale, first, last, shift, mask, row, is_open, slots, rests, rows, listed, count
):
    """Add the intervals of one user end by end; list those too that rounding alone may have emptied."""
    lows, highs = np.empty(8, listed.dtype), np.empty(8, listed.dtype)
    all_ends(v, c, at, stride_v, stride_c, arms, mask, lows, highs)
    rounded = False
    for j in range(arms):
        low, high = max(np.int64(lows[j]), first - 1), min(np.int64(highs[j]), np.int64(last))
        if high < first or low >= last or low - high >= NEAR:
            continue
        slot = np.uintp((high - first) >> shift)
        rows[count], listed[count] = row, high
        count += np.uintp(is_open[slot])
        if low >= high:
            continue
        x = np.float64(c[at + j * stride_c]) * scale
        part, rounds = _rest(x)
        rounded = rounded or rounds
        slots[slot] += np.int64(x)
        rests[slot] += part
        if low >= first:
            slot = np.uintp((low - first) >> shift)
            slots[slot] -= np.int64(x)
            rests[slot] -= part
    return count, rounded


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
def pass_over_intervals(v, c, stride, arms, some, start, stop, first, last, shift, mask, is_open, sums, rows, ends):
    """Add up the spend by slots for users from ``start`` until ``stop`` or until the lists are full.

    Args:
        v, c: flat memory of ``[K, N]``; stride: of arm and user, of v then c.
        some: at least K of anything, see ``WRITTEN``.
        first: bits of the lowest slope of S slots; last: of the first slope above; shift: width as a power of two.
        mask: all bits but the sign.
        is_open: ``[S + 1]``, of whose slots upper ends are listed; not the last.
        sums: ``[S + 1, 2]``, the spend above all slots last; each a float and the rest.
        rows, ends: lists, of users less ``start`` and bits of slopes.

    Returns:
        Where it stopped, how many were listed, and whether all numbers are finite and of sizes that fit.
    """
    direct = stride[1] == 1 and stride[3] == 1
    length = 1 if direct else arms * PITCH
    piece_v, piece_c = np.empty(length, v.dtype), np.empty(length, v.dtype)
    highs, steps, odd = np.empty(len(some) * PITCH, ends.dtype), np.zeros(PITCH, np.uint8), np.zeros(PITCH, np.int8)
    paid, position, words = np.empty(PITCH, v.dtype), np.empty(BLOCK + 1, np.uintp), np.empty(BLOCK // 8 + 1, np.uintp)
    slots, rests = np.zeros(len(sums), np.int64), np.zeros(len(sums), np.int64)
    top, one_bits = len(sums) - 1, np.zeros(1, ends.dtype)
    one = one_bits.view(v.dtype)
    below = ends.dtype.type(first - 1)
    digits = 24 if v.itemsize == 4 else 53
    bound, scale, least, used, fits = 0.0, 0.0, mask, False, True
    count, filled = np.uintp(0), 0.0
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
        odd[n : n + 8] = 0
        largest_v, largest_c, small = intervals(
            bv, bc, at, sv, sc, arms, some, n, below, last, mask, least, highs, steps, odd, paid
        )
        one_bits[0] = largest_v
        fits = np.float64(one[0]) < _LARGEST
        one_bits[0] = largest_c
        size = np.float64(one[0])
        fits = fits and size < _LARGEST
        if size > bound or filled + n * _MOST_OF_ONE * 2.0**_BITS > _FULL:
            _empty(slots, 1 / scale if scale > 0 else 0.0, sums)
            if used:
                _empty(rests, 2.0**-_BITS / scale, sums)
            filled, used = 0.0, False
        if size > bound:
            bound = 2 * max(size, _SMALLEST)
            exponent = math.frexp(bound)[1]
            scale = math.ldexp(1.0, _BITS - exponent)
            one[0] = math.ldexp(1.0, exponent - _BITS + digits - 1)
            least = one_bits[0]
            small = True
        lost = False
        if small:
            for j in range(arms):
                lost = lost or _rounds(bc, at + j * sc, n, scale)
        slots[top] += _total(paid, n, scale)
        if lost:
            part, rounded = _total_rest(paid, n, scale)
            rests[top] += part
            used, fits = True, fits and not rounded
        m = _with_steps(steps, n, position)
        count, rounded = _add_steps(
            bc,
            at,
            sc,
            scale,
            lost,
            highs,
            steps,
            position,
            m,
            first,
            shift,
            a - start,
            is_open,
            slots,
            rests,
            rows,
            ends,
            count,
        )
        fits = fits and not rounded
        m = collect_rare(odd, n, words, position)
        for t in range(m):
            i = np.int64(position[t])
            count, rounded = _add_odd(
                bv,
                bc,
                at + i,
                sv,
                sc,
                arms,
                scale,
                first,
                last,
                shift,
                mask,
                a - start + i,
                is_open,
                slots,
                rests,
                rows,
                ends,
                count,
            )
            used, fits = True, fits and not rounded
        filled += (2 * n + _MOST_OF_ONE * np.int64(m)) * (2.0**_BITS if used else size * scale)
        a += n
    if scale > 0:
        _empty(slots, 1 / scale, sums)
        _empty(rests, 2.0**-_BITS / scale, sums)
    return a, count, fits
