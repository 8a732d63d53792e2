"""Best and second-best score of a block of users at the ends of brackets, all of at most eight arms at once.

Every number of a user stays in a register from its reading to the verdict. The loops over arms run over a tuple, whose
length the compiler knows: it unrolls them, and the loops over users become vector instructions. Indices are unsigned: a
signed one may be negative, which the vectoriser cannot take. Sums may be taken in any order, see
``least_lossless``.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

MOST_ARMS = 8
BLOCK = 2048

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")
_filter = nb.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_filter
def at_both_ends(
    v,
    c,
    bits_v,
    bits_c,
    mask,
    offsets,
    at,
    n,
    low,
    by_value,
    by_cost,
    margin,
    margin_low,
    least_paid,
    least_worth,
    to,
    arm,
    is_open,
    paid,
    worth,
):
    """Judge n users from position ``at`` by their leads at both ends.

    Writes the arm at the upper end to ``arm [to:]``, who is open to ``is_open``, and the cost and value of the others
    to ``paid`` and ``worth``, 0 for the open.

    Returns:
        Sums of ``paid`` and ``worth``; whether some of them, other than 0, are smaller than ``least_paid`` and
        ``least_worth``; bits of the largest absolute value and cost.
    """
    total_paid, total_worth = 0.0, 0.0
    small_paid, small_worth = np.int32(0), np.int32(0)
    largest_v, largest_c = mask ^ mask, mask ^ mask
    at, to = np.uintp(at), np.uintp(to)
    zero = paid.dtype.type(0)
    least = -paid.dtype.type(np.inf)
    for i in range(np.uintp(n)):
        b, s, b_low, s_low = least, least, least, least
        at_low, x, y, k, j = zero, zero, zero, np.int32(0), np.int32(0)
        for offset in offsets:
            place = offset + at + i
            value, price = v[place], c[place]
            size_v, size_c = bits_v[place] & mask, bits_c[place] & mask
            largest_v = max(size_v, largest_v)
            largest_c = max(size_c, largest_c)
            score = by_value * value - by_cost * price
            score_low = value - low * price
            s = max(s, min(b, score))
            better = score > b
            b = score if better else b
            x = price if better else x
            y = value if better else y
            k = j if better else k
            at_low = score_low if better else at_low
            s_low = max(s_low, min(b_low, score_low))
            b_low = max(b_low, score_low)
            j += np.int32(1)
        settled = (b - s > margin) & (b_low - s_low > margin_low) & (at_low == b_low)
        x, y = (x if settled else zero), (y if settled else zero)
        is_open[i] = np.int8(0) if settled else np.int8(1)
        arm[to + i] = np.int8(k)
        paid[i], worth[i] = x, y
        small_paid |= np.int32((abs(x) < least_paid) & (x != zero))
        small_worth |= np.int32((abs(y) < least_worth) & (y != zero))
        total_paid += np.float64(x)
        total_worth += np.float64(y)
    return total_paid, total_worth, small_paid != 0, small_worth != 0, largest_v, largest_c


@_exact
def recheck(v, c, offsets, at, n, low, by_value, by_cost, tie, tiny, cheapest, to, arm, is_open, paid, worth):
    """Settle, by their own size instead of the block's and in float64, those of the open who still can be."""
    at, to = np.uintp(at), np.uintp(to)
    for i in range(np.uintp(n)):
        if not is_open[i]:
            continue
        b, s, b_low, s_low, at_low, size_v, size_c = -np.inf, -np.inf, -np.inf, -np.inf, 0.0, 0.0, 0.0
        k = 0
        for j, offset in enumerate(offsets):
            value, price = np.float64(v[offset + at + i]), np.float64(c[offset + at + i])
            size_v, size_c = max(size_v, abs(value)), max(size_c, abs(price))
            score, score_low = by_value * value - by_cost * price, value - low * price
            s, s_low = max(s, min(b, score)), max(s_low, min(b_low, score_low))
            if score > b:
                b, at_low, k = score, score_low, j
            b_low = max(b_low, score_low)
        margin = 0.0 if cheapest else tie * (size_v + by_cost * size_c) + tiny
        if b - s > margin and b_low - s_low > tie * (size_v + low * size_c) + tiny and at_low == b_low:
            place = offsets[k] + at + i
            is_open[i] = 0
            arm[to + i] = k
            paid[i], worth[i] = c[place], v[place]


@_exact
def least_lossless(bound, spare):
    """How small numbers up to a bound may be for a block to add up in float64 without rounding, in any order.

    Their exponents may differ by ``spare``; none do if that is negative.
    """
    return math.ldexp(0.5, math.frexp(np.float64(bound))[1] - spare) if spare >= 0 else np.inf


@_exact
def collect(is_open, n, position):
    """Positions of the open among n users, without a branch that could be mispredicted; returns how many."""
    m = np.uintp(0)
    for i in range(np.uintp(n)):
        position[m] = i
        m += np.uintp(is_open[i])
    return m


@_exact
def collect_rare(is_open, n, words, position):
    """As :func:`collect`, faster where few are open: by words of eight. Those from n on must be marked settled."""
    eight, k, m = is_open.view(np.int64), np.uintp(0), np.uintp(0)
    for w in range(np.uintp((n + 7) // 8)):
        words[k] = w
        k += np.uintp(eight[w] != 0)
    for t in range(k):
        first = np.uintp(8) * words[t]
        for i in range(first, first + np.uintp(8)):
            position[m] = i
            m += np.uintp(is_open[i])
    return m
