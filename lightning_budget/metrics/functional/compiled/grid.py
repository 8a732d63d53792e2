"""Rows into difference arrays over a grid of multipliers, once or on all resamples."""

from __future__ import annotations

import numba as nb
import numpy as np

from lightning_budget.metrics.functional.compiled.sweep import draw

_INFINITY = np.int64(0x7FF0000000000000)

_loop = nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"})


@_loop
def _below(bits, shift, base, points):
    return np.int64(1) + min(max(((bits - 1) >> shift) + 1 - base, 0), points - 2) if bits > 0 else np.int64(0)


@_loop
def _change(changes, k, sign, m, y, x):
    changes[k, 0] += sign * m
    changes[k, 1] += sign * y
    changes[k, 2] += sign * x
    changes[k, 3] += m
    changes[k, 4] += abs(y)
    changes[k, 5] += abs(x)


@_loop
def add_rows(lower_bits, upper_bits, weight, propensity, value, cost, shift, base, changes):
    """See ``grid.grid_changes``: add N rows, their bounds given as bits, to ``changes [P, 6]``.

    ``weight`` is ``[N]``, or one number for all rows.
    """
    points = len(changes)
    for i in range(len(lower_bits)):
        low, high = lower_bits[i], upper_bits[i]
        m = weight[i if len(weight) > 1 else 0] / np.float64(propensity[i])
        if low >= high or m == 0.0:
            continue
        y, x = m * np.float64(value[i]), m * np.float64(cost[i])
        last = points if high == _INFINITY else _below(high, shift, base, points)
        _change(changes, last - 1, 1.0, m, y, x)
        first = _below(low, shift, base, points)
        if first > 0:
            _change(changes, first - 1, -1.0, m, y, x)


@_loop
def _add(counts, m, y, x, to):
    for r in range(np.uintp(to.shape[1])):
        n = np.float64(counts[r])
        to[0, r] += n * m
        to[1, r] += n * y
        to[2, r] += n * x


@_loop
def add_resamples(hashed, first, last, mass, value, cost, size, keys, edges, total, changes):
    """See ``grid.grid_resamples``: add N rows to ``total [R]`` and ``changes [P, 3, R]``, R even."""
    pairs, counts = np.zeros(len(keys), np.uint32), np.zeros(2 * len(keys), np.uint16)
    halves = pairs.view(np.uint16)
    for i in range(len(first)):
        draw(hashed[i], keys, edges, pairs, halves, counts)
        for r in range(np.uintp(len(total))):
            total[r] += size[i] * np.float64(counts[r])
        m = mass[i]
        if m == 0.0:
            continue
        y, x = m * np.float64(value[i]), m * np.float64(cost[i])
        if last[i] > 0:
            _add(counts, m, y, x, changes[last[i] - 1])
        if first[i] > 0:
            _add(counts, -m, -y, -x, changes[first[i] - 1])
