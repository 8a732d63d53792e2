"""Rows into difference arrays over a grid of multipliers, once or on all resamples."""

from __future__ import annotations

import numba as nb
import numpy as np

from lightning_budget.metrics.functional.compiled.sweep import draw

_loop = nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"})


@_loop
def add_rows(first, last, mass, value, cost, changes):
    """See ``grid.grid_changes``: add N rows to ``changes [6, P]``."""
    for i in range(len(first)):
        m = mass[i]
        if m == 0.0:
            continue
        y, x = m * np.float64(value[i]), m * np.float64(cost[i])
        k = last[i] - 1
        if k >= 0:
            changes[0, k] += m
            changes[1, k] += y
            changes[2, k] += x
            changes[3, k] += m
            changes[4, k] += abs(y)
            changes[5, k] += abs(x)
        k = first[i] - 1
        if k >= 0:
            changes[0, k] -= m
            changes[1, k] -= y
            changes[2, k] -= x
            changes[3, k] += m
            changes[4, k] += abs(y)
            changes[5, k] += abs(x)


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
