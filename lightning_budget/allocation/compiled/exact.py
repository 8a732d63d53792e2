"""Decisions by slopes in float64, user by user: the policy, and the steps of the frontier."""

from __future__ import annotations

import sys

import numba as nb
import numpy as np

_LARGEST = sys.float_info.max
_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def choose(v, c, stride, arms, start, stop, multiplier, out):
    """Best arm of users ``start`` to ``stop`` at a multiplier; see :func:`policy_treatment`."""
    for i in range(start, stop):
        at_v, at_c = i * stride[1], i * stride[3]
        best_v, best_c, best = np.float64(v[at_v]), np.float64(c[at_c]), 0
        for j in range(1, arms):
            y, x = np.float64(v[at_v + j * stride[0]]), np.float64(c[at_c + j * stride[2]])
            gain, price = y - best_v, x - best_c
            better = gain > 0 if price == 0 else (min(gain / price, _LARGEST) > multiplier) != (price < 0)
            if better:
                best_v, best_c, best = y, x, j
        out[i] = best


@_exact
def climb(v, c, stride, arms, start, stop, floor, ceiling, first, user, arm, previous, slope):
    """Cheapest arm of users ``start`` to ``stop``, and their steps with slopes in ``(floor, ceiling]``.

    See :func:`efficient_frontier`.

    Returns:
        int: number of steps written.
    """
    count = 0
    y, x = np.empty(arms), np.empty(arms)
    for i in range(start, stop):
        for j in range(arms):
            y[j], x[j] = v[i * stride[1] + j * stride[0]], c[i * stride[3] + j * stride[2]]
        at = 0
        for j in range(1, arms):
            if x[j] < x[at] or (x[j] == x[at] and y[j] > y[at]):
                at = j
        first[i] = at
        bound = _LARGEST
        while True:
            best, to = 0.0, -1
            for j in range(arms):
                gain, price = y[j] - y[at], x[j] - x[at]
                if gain > 0 and price > 0:
                    s = min(gain / price, _LARGEST)
                    if s > best or (to >= 0 and s == best and (x[j] > x[to] or (x[j] == x[to] and y[j] > y[to]))):
                        best, to = s, j
            if to < 0:
                break
            bound = min(bound, best)
            if bound <= floor:
                break
            if bound <= ceiling:
                user[count], arm[count], previous[count], slope[count] = i, to, at, bound
                count += 1
            at = to
    return count
