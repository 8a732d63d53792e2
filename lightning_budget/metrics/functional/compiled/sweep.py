"""All bootstrap resamples in one sweep over the sorted events, none of which is visited twice."""

from __future__ import annotations

import numba as nb
import numpy as np

_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_LOW = np.uint64(0xFFFFFFFF)

_loop = nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"})
# A call an event costs a fifth of the time.
_inlined = nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"}, inline="always")


@_inlined
def draw(hashed, keys, edges, pairs, halves, counts):
    """Poisson counts ``[R]`` of one user, two from each hashed key; see ``poisson.hashed_counts``."""
    low, high = np.uint32(hashed & _LOW), np.uint32(hashed >> np.uint64(32))
    for q in range(np.uintp(len(keys))):
        x = np.uint32(low ^ keys[q])
        x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
        x = np.uint32(x * _FIRST)
        x = np.uint32(x ^ np.uint32(x >> np.uint32(13)))
        x = np.uint32(x + high)
        x = np.uint32(x * _SECOND)
        pairs[q] = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    for r in range(np.uintp(len(counts))):
        x, n = halves[r], np.uint16(0)
        for edge in edges:
            n = np.uint16(n + np.uint16(x >= edge))
        counts[r] = n


@_inlined
def _add(counts, mass_change, value_change, cost_change, budget, share, mass, value, cost):
    """Add one event to R running sums; how many of them need a look: over their budget, or out of rows."""
    found = 0
    for r in range(np.uintp(len(mass))):
        n = np.float64(counts[r])
        m = mass[r] + n * mass_change
        s = cost[r] + n * cost_change
        mass[r], cost[r] = m, s
        value[r] += n * value_change
        found += np.int64(s > budget[r] * m) | np.int64(m < share)
    return found


@_loop
def totals(hashed, weight, keys, edges, total):
    """Weight ``[R]`` of the rows in every resample; ``weight`` is ``[N]``, or one number for all rows."""
    pairs, counts = np.zeros(len(keys), np.uint32), np.zeros(2 * len(keys), np.uint16)
    halves = pairs.view(np.uint16)
    for i in range(len(hashed)):
        draw(hashed[i], keys, edges, pairs, halves, counts)
        w = weight[i] if len(weight) > 1 else weight[0]
        for r in range(np.uintp(len(total))):
            total[r] += w * np.float64(counts[r])


@_loop
def sweep(hashed, ends, mass_change, value_change, cost_change, keys, edges, total, least, budgets, out):
    """Value per row at each budget on R resamples; see ``bootstrap``.

    Args:
        hashed: ``[E]`` uint64, of the user of each event; ends: ``[E]`` whether a group of equal multipliers ends here.
        mass_change, value_change, cost_change: ``[E]``; the first is empty where the denominator is ``total [R]``.
        least: a denominator above it has a row; keys: ``[ceil(R / 2)]``.
        budgets: ``[B]`` ascending; out: ``[R, B]``, written.
    """
    resamples, several = out.shape
    self_normalised = len(mass_change) > 0
    pairs, counts = np.zeros(len(keys), np.uint32), np.zeros(2 * len(keys), np.uint16)
    halves = pairs.view(np.uint16)
    mass = np.zeros(resamples) if self_normalised else total.copy()
    value, cost = np.zeros(resamples), np.zeros(resamples)
    # Of the last point that has an estimate: the point before a crossing, and where a resample runs out of rows.
    last_value, last_cost = np.zeros(resamples), np.zeros(resamples)
    has_last = np.zeros(resamples, np.bool_)
    before_mass, before_value, before_cost = mass.copy(), value.copy(), cost.copy()
    next_budget, met = np.full(resamples, budgets[0]), np.zeros(resamples, np.int64)
    grouped, look, first = False, 0, True
    for e in range(len(hashed)):
        if not ends[e] and not grouped:
            before_mass[:], before_value[:], before_cost[:] = mass, value, cost
            grouped = True
        change = mass_change[e] if self_normalised else 0.0
        draw(hashed[e], keys, edges, pairs, halves, counts)
        look = _add(counts[:resamples], change, value_change[e], cost_change[e], next_budget, least, mass, value, cost)
        if not ends[e]:
            continue
        if look:
            for r in range(resamples):
                n = np.float64(counts[r])
                if grouped:
                    m, v, c = before_mass[r], before_value[r], before_cost[r]
                else:
                    m, v, c = mass[r] - n * change, value[r] - n * value_change[e], cost[r] - n * cost_change[e]
                if m > least and not first:
                    last_value[r], last_cost[r], has_last[r] = v / m, c / m, True
                if mass[r] <= least:
                    continue
                here_value, here_cost = value[r] / mass[r], cost[r] / mass[r]
                while met[r] < several and here_cost > budgets[met[r]]:
                    b = budgets[met[r]]
                    if has_last[r]:
                        share = (b - last_cost[r]) / (here_cost - last_cost[r])
                        out[r, met[r]] = last_value[r] + share * (here_value - last_value[r])
                    else:
                        out[r, met[r]] = here_value
                    met[r] += 1
                next_budget[r] = budgets[met[r]] if met[r] < several else np.inf
        grouped, first = False, False
    for r in range(resamples):
        if mass[r] > least:
            last_value[r] = value[r] / mass[r]
        for k in range(met[r], several):
            out[r, k] = last_value[r]
