"""At which multipliers the policy gives each row the arm it was given, block by block of rows."""

from __future__ import annotations

import numba as nb
import numpy as np

_BLOCK = 512
_LARGEST = np.finfo(np.float64).max

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def _compare(v, c, arm, n, given, value, cost, lower, upper, beaten):
    """Take one arm of n rows into their bounds; NaN if a number is not finite."""
    wrong = 0.0
    for i in range(np.uintp(n)):
        y, x = np.float64(v[i]), np.float64(c[i])
        gain, price = value[i] - y, cost[i] - x
        slope = gain / (1.0 if price == 0 else price)
        slope = -_LARGEST if slope < -_LARGEST else slope
        slope = _LARGEST if slope > _LARGEST else slope
        upper[i] = slope if (price > 0) & (slope < upper[i]) else upper[i]
        lower[i] = slope if (price < 0) & (slope > lower[i]) else lower[i]
        better = (gain < 0) | ((gain == 0) & (arm < given[i]))
        beaten[i] |= np.int8(price == 0) & np.int8(better)
    for i in range(np.uintp(n)):
        wrong += np.float64(v[i]) * 0.0 + np.float64(c[i]) * 0.0
    return wrong


@_exact
def matched_intervals(v, c, stride, arms, treatment, lower, upper):
    """See :func:`lightning_budget.metrics.functional.matched.matched_interval`.

    Args:
        v, c: flat memory of ``[K, N]``; stride: of arm and row, of v then c.
        treatment: ``[N]``, in range; lower, upper: ``[N]``, written.

    Returns:
        Whether all predictions are finite.
    """
    wrong = 0.0
    given = np.empty(_BLOCK, np.int64)
    value, cost = np.empty(_BLOCK), np.empty(_BLOCK)
    beaten = np.empty(_BLOCK, np.int8)
    direct = stride[1] == 1 and stride[3] == 1
    piece_v, piece_c = np.empty(_BLOCK, v.dtype), np.empty(_BLOCK, c.dtype)
    rows = len(treatment)
    for a in range(0, rows, _BLOCK):
        n = min(_BLOCK, rows - a)
        low, high = lower[a : a + n], upper[a : a + n]
        for i in range(n):
            t = np.int64(treatment[a + i])
            given[i] = t
            value[i] = v[t * stride[0] + (a + i) * stride[1]]
            cost[i] = c[t * stride[2] + (a + i) * stride[3]]
            low[i], high[i], beaten[i] = 0.0, np.inf, 0
        for j in range(arms):
            if direct:
                from_v, from_c = j * stride[0] + a, j * stride[2] + a
                one_v, one_c = v[from_v : from_v + n], c[from_c : from_c + n]
            else:
                for i in range(n):
                    piece_v[i] = v[j * stride[0] + (a + i) * stride[1]]
                    piece_c[i] = c[j * stride[2] + (a + i) * stride[3]]
                one_v, one_c = piece_v[:n], piece_c[:n]
            wrong += _compare(one_v, one_c, j, n, given, value, cost, low, high, beaten)
        for i in range(n):
            never = (beaten[i] != 0) | (low[i] >= high[i])
            low[i] = 0.0 if never else low[i]
            high[i] = 0.0 if never else high[i]
    return wrong == 0.0


@_exact
def events_of(lower, upper, value, cost, propensity):
    """Entries and exits of N rows, unsorted: multiplier ``[E]``, row ``[E]``, and changes ``[E, 4]``.

    A change is the multiplier again, then mass, value and cost: one place in memory to fetch in another order. The
    first event, of row 0 and without weight, stands at +inf, so that every walk starts there.
    """
    count = 1
    for i in range(len(lower)):
        count += (lower[i] < upper[i]) + (lower[i] > 0)
    multiplier, row, change = np.empty(count), np.empty(count, np.int64), np.empty((count, 4))
    multiplier[0], row[0] = np.inf, 0
    change[0, 0], change[0, 1], change[0, 2], change[0, 3] = np.inf, 0.0, 0.0, 0.0
    k = 1
    for i in range(len(lower)):
        if lower[i] < upper[i]:
            mass = 1.0 / np.float64(propensity[i])
            worth, paid = mass * np.float64(value[i]), mass * np.float64(cost[i])
            multiplier[k], row[k] = upper[i], i
            change[k, 0], change[k, 1], change[k, 2], change[k, 3] = upper[i], mass, worth, paid
            k += 1
            if lower[i] > 0:
                multiplier[k], row[k] = lower[i], i
                change[k, 0], change[k, 1], change[k, 2], change[k, 3] = lower[i], -mass, -worth, -paid
                k += 1
    return multiplier, row, change


@_exact
def changes_of(order, unsorted_row, change, multiplier, row, mass, worth, paid):
    """Multiplier, row, and changes of mass, value and cost ``[E]`` in an order of the events."""
    for k in range(len(order)):
        e = order[k]
        row[k], multiplier[k] = unsorted_row[e], change[e, 0]
        mass[k], worth[k], paid[k] = change[e, 1], change[e, 2], change[e, 3]


@_exact
def points_of(order, change, total, least):
    """Multiplier, spend and value of the M points of a walk over events in an order, every row counted once.

    Args:
        total: divides the sums; 0: they are divided by the running mass, where that is above ``least``.
    """
    events = len(order)
    multiplier, spend, value = np.empty(events), np.empty(events), np.empty(events)
    mass = worth = paid = 0.0
    k, first = 0, -1
    for j in range(events):
        e = order[j]
        price = change[e, 0]
        mass += change[e, 1]
        worth += change[e, 2]
        paid += change[e, 3]
        if j + 1 < events and change[order[j + 1], 0] == price:
            continue
        multiplier[k], spend[k], value[k] = price, 0.0, 0.0
        if total > 0:
            spend[k], value[k] = paid / total, worth / total
        elif mass > least:
            spend[k], value[k] = paid / mass, worth / mass
            first = k if first < 0 else first
        elif first >= 0:
            spend[k], value[k] = spend[k - 1], value[k - 1]
        k += 1
    for j in range(first):
        spend[j], value[j] = spend[first], value[first]
    # Copied, so that little is kept of rooms for every event.
    return multiplier[:k].copy(), spend[:k].copy(), value[:k].copy()
