"""Best and second-best score of a block of users at both ends of a bracket, one group of arms after the other.

State lies in one scratch array, a row of ``PITCH`` numbers per quantity, so that a block stays in the first-level cache
and loops over users become vector instructions. Indices are unsigned: a signed one may be negative, which the
vectoriser cannot take. ``contract`` only fuses a product with a sum; nothing is decided within its error.
"""

from __future__ import annotations

import numba as nb
import numpy as np

BLOCK = 512
PITCH = 528
"""Not a multiple of a page, whose rows would fall into one cache set."""

ROWS = 11
BEST, SECOND, BEST_LOW, SECOND_LOW, AT_LOW, PAID, WORTH, ARM, LARGEST_VALUE, LARGEST_COST, WRONG = (
    np.uintp(i * PITCH) for i in range(ROWS)
)
LOW, BY_VALUE, BY_COST, TIE_HIGH, TINY_HIGH, TIE_LOW, TINY_LOW = range(7)
"""Places of the numbers of a bracket: lower multiplier; weights of value and cost at the upper end; two margins."""

_filter = nb.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def _size_step(y, x, zero, largest_value, largest_cost, wrong):
    return max(largest_value, abs(y)), max(largest_cost, abs(x)), wrong + y * zero + x * zero


@_filter
def _step(y, x, j, low, by_value, by_cost, b, s, b_low, s_low, at_low, paid, worth, arm):
    score = by_value * y - by_cost * x
    score_low = y - low * x
    s = max(s, min(b, score))
    better = score > b
    b = score if better else b
    paid = x if better else paid
    worth = y if better else worth
    arm = j if better else arm
    at_low = score_low if better else at_low
    s_low = max(s_low, min(b_low, score_low))
    b_low = max(b_low, score_low)
    return b, s, b_low, s_low, at_low, paid, worth, arm


@_exact
def fill(w, n, first, last, number):
    """Rows ``first`` to ``last`` of the scratch, both offsets, to a number."""
    row = first
    while row <= last:
        for i in range(np.uintp(n)):
            w[row + i] = number
        row += np.uintp(PITCH)


@_filter
def sizes_of_four(v, o, sv, c, p, sc, w, n, zero):
    """Largest absolute value and cost, and NaN where a number is not finite, over four arms."""
    o0, p0, sv, sc = np.uintp(o), np.uintp(p), np.uintp(sv), np.uintp(sc)
    o1, p1 = o0 + sv, p0 + sc
    o2, p2 = o1 + sv, p1 + sc
    o3, p3 = o2 + sv, p2 + sc
    for i in range(np.uintp(n)):
        a, b, bad = w[LARGEST_VALUE + i], w[LARGEST_COST + i], w[WRONG + i]
        a, b, bad = _size_step(v[o0 + i], c[p0 + i], zero, a, b, bad)
        a, b, bad = _size_step(v[o1 + i], c[p1 + i], zero, a, b, bad)
        a, b, bad = _size_step(v[o2 + i], c[p2 + i], zero, a, b, bad)
        a, b, bad = _size_step(v[o3 + i], c[p3 + i], zero, a, b, bad)
        w[LARGEST_VALUE + i], w[LARGEST_COST + i], w[WRONG + i] = a, b, bad


@_filter
def sizes_of_one(v, o, c, p, w, n, zero):
    """As :func:`sizes_of_four`, over one arm."""
    o, p = np.uintp(o), np.uintp(p)
    for i in range(np.uintp(n)):
        a, b, bad = w[LARGEST_VALUE + i], w[LARGEST_COST + i], w[WRONG + i]
        a, b, bad = _size_step(v[o + i], c[p + i], zero, a, b, bad)
        w[LARGEST_VALUE + i], w[LARGEST_COST + i], w[WRONG + i] = a, b, bad


@_filter
def scores_of_four(v, o, sv, c, p, sc, w, n, q, j, arms):
    """Take four arms from ``j`` into the best and second best."""
    o0, p0, sv, sc = np.uintp(o), np.uintp(p), np.uintp(sv), np.uintp(sc)
    o1, p1 = o0 + sv, p0 + sc
    o2, p2 = o1 + sv, p1 + sc
    o3, p3 = o2 + sv, p2 + sc
    lo, wv, wc = q[LOW], q[BY_VALUE], q[BY_COST]
    j0, j1, j2, j3 = arms[j], arms[j + 1], arms[j + 2], arms[j + 3]
    for i in range(np.uintp(n)):
        b, s, bl, sl = w[BEST + i], w[SECOND + i], w[BEST_LOW + i], w[SECOND_LOW + i]
        at, pd, wo, ar = w[AT_LOW + i], w[PAID + i], w[WORTH + i], w[ARM + i]
        b, s, bl, sl, at, pd, wo, ar = _step(v[o0 + i], c[p0 + i], j0, lo, wv, wc, b, s, bl, sl, at, pd, wo, ar)
        b, s, bl, sl, at, pd, wo, ar = _step(v[o1 + i], c[p1 + i], j1, lo, wv, wc, b, s, bl, sl, at, pd, wo, ar)
        b, s, bl, sl, at, pd, wo, ar = _step(v[o2 + i], c[p2 + i], j2, lo, wv, wc, b, s, bl, sl, at, pd, wo, ar)
        b, s, bl, sl, at, pd, wo, ar = _step(v[o3 + i], c[p3 + i], j3, lo, wv, wc, b, s, bl, sl, at, pd, wo, ar)
        w[BEST + i], w[SECOND + i], w[BEST_LOW + i], w[SECOND_LOW + i] = b, s, bl, sl
        w[AT_LOW + i], w[PAID + i], w[WORTH + i], w[ARM + i] = at, pd, wo, ar


@_filter
def scores_of_one(v, o, c, p, w, n, q, j, arms):
    """As :func:`scores_of_four`, one arm."""
    o, p = np.uintp(o), np.uintp(p)
    lo, wv, wc, j0 = q[LOW], q[BY_VALUE], q[BY_COST], arms[j]
    for i in range(np.uintp(n)):
        b, s, bl, sl = w[BEST + i], w[SECOND + i], w[BEST_LOW + i], w[SECOND_LOW + i]
        at, pd, wo, ar = w[AT_LOW + i], w[PAID + i], w[WORTH + i], w[ARM + i]
        b, s, bl, sl, at, pd, wo, ar = _step(v[o + i], c[p + i], j0, lo, wv, wc, b, s, bl, sl, at, pd, wo, ar)
        w[BEST + i], w[SECOND + i], w[BEST_LOW + i], w[SECOND_LOW + i] = b, s, bl, sl
        w[AT_LOW + i], w[PAID + i], w[WORTH + i], w[ARM + i] = at, pd, wo, ar


@_exact
def judge(w, n, q, is_open):
    """Mark who is not clearly settled, and take their cost and value out of the rows that are summed."""
    # Numbers in registers: memory of q might be that of w for all the compiler knows.
    zero, low, by_value, by_cost = w.dtype.type(0), q[LOW], q[BY_VALUE], q[BY_COST]
    tie, tiny, tie_low, tiny_low = q[TIE_HIGH], q[TINY_HIGH], q[TIE_LOW], q[TINY_LOW]
    for i in range(np.uintp(n)):
        size_v, size_c = w[LARGEST_VALUE + i], w[LARGEST_COST + i]
        margin = tie * (by_value * size_v + by_cost * size_c) + tiny
        margin_low = tie_low * (size_v + low * size_c) + tiny_low
        paid, worth = w[PAID + i], w[WORTH + i]
        settled = (
            (w[BEST + i] - w[SECOND + i] > margin)
            & (w[BEST_LOW + i] - w[SECOND_LOW + i] > margin_low)
            & (w[AT_LOW + i] == w[BEST_LOW + i])
            & (w[WRONG + i] == zero)
        )
        is_open[i] = 0 if settled else 1
        w[PAID + i] = paid if settled else zero
        w[WORTH + i] = worth if settled else zero
