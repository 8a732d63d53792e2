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
def events_of(lower, upper):
    """Entries and exits of N rows, unsorted: multiplier ``[E]``, and row ``[E]``, −1 − row where it leaves.

    The first event, of row 0 and without weight, stands at +inf, so that every walk starts there.
    """
    count = 1
    for i in range(len(lower)):
        count += (lower[i] < upper[i]) + (lower[i] > 0)
    multiplier, row = np.empty(count), np.empty(count, np.int64)
    multiplier[0], row[0] = np.inf, 0
    k = 1
    for i in range(len(lower)):
        if lower[i] < upper[i]:
            multiplier[k], row[k] = upper[i], i
            k += 1
    for i in range(len(lower)):
        if lower[i] > 0:
            multiplier[k], row[k] = lower[i], -1 - i
            k += 1
    return multiplier, row


@_exact
def changes_of(order, signed_row, value, cost, propensity, row, mass, worth, paid):
    """Changes ``[E]`` of mass, value and cost in an order of the events, and whose they are."""
    for k in range(len(order)):
        e = order[k]
        i = signed_row[e]
        sign = 1.0 if i >= 0 else -1.0
        i = i if i >= 0 else -1 - i
        weight = 0.0 if e == 0 else sign / np.float64(propensity[i])
        row[k], mass[k] = i, weight
        worth[k] = weight * np.float64(value[i])
        paid[k] = weight * np.float64(cost[i])


@_exact
def points_of(order, multiplier, signed_row, value, cost, propensity, total, least, at, spend, worth):
    """Write the curve through an order of the events: M multipliers, spends and values per capita; returns M.

    ``total`` is the denominator of all points; 0: the weight of the rows held there. A point that holds less than
    ``least`` repeats the one above, and at the start the first one below that holds more.
    """
    mass, paid, earned = 0.0, 0.0, 0.0
    k, first = 0, -1
    events = len(order)
    e = order[0]
    here = multiplier[e]
    for j in range(events):
        i = signed_row[e]
        sign = 1.0 if i >= 0 else -1.0
        i = i if i >= 0 else -1 - i
        weight = 0.0 if e == 0 else sign / np.float64(propensity[i])
        mass += weight
        paid += weight * np.float64(cost[i])
        earned += weight * np.float64(value[i])
        after = 0.0
        if j + 1 < events:
            e = order[j + 1]
            after = multiplier[e]
            if after == here:
                continue
        at[k], here = here, after
        size = total if total > 0 else mass
        if size > least:
            spend[k], worth[k] = paid / size, earned / size
            if first < 0:
                first = k
        elif first >= 0:
            spend[k], worth[k] = spend[k - 1], worth[k - 1]
        k += 1
    for j in range(k if first < 0 else first):
        spend[j] = 0.0 if first < 0 else spend[first]
        worth[j] = 0.0 if first < 0 else worth[first]
    return k
