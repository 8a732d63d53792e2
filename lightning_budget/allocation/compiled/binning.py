"""Steps of the frontiers of a block of users at once, summed by the bin of their slope.

State lies in one scratch array, a row of ``PITCH`` numbers per quantity, as in ``scores``. Every user takes one step a
round, so that loops over users become vector instructions; who has none left takes one of slope 0, which costs nothing.
"""

from __future__ import annotations

import sys

import numba as nb
import numpy as np

BLOCK = 128
PITCH = 144
AT_VALUE, AT_COST, TO_VALUE, TO_COST, BEST, BOUND, ARMS = (np.uintp(i * PITCH) for i in range(7))
_LARGEST = sys.float_info.max
_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def _bring_in(x, stride_arm, stride_user, arms, start, n, w, row):
    wrong = np.int64(0)
    for j in range(arms):
        base, to = np.uintp(j * stride_arm + start * stride_user), np.uintp(row + j * PITCH)
        if stride_user == 1:
            for i in range(np.uintp(n)):
                w[to + i] = x[base + i]
        else:
            for i in range(np.uintp(n)):
                w[to + i] = x[base + i * np.uintp(stride_user)]
        for i in range(np.uintp(n)):
            wrong |= np.int64(0) if w[to + i] - w[to + i] == 0 else np.int64(1)
    return wrong == 0


@_exact
def _cheapest(w, n, arms, values, costs):
    """The cheapest arm of each, of equally cheap ones the most valuable."""
    for i in range(np.uintp(n)):
        w[AT_VALUE + i], w[AT_COST + i], w[BOUND + i] = w[values + i], w[costs + i], _LARGEST
    for j in range(1, arms):
        row_y, row_x = values + np.uintp(j * PITCH), costs + np.uintp(j * PITCH)
        for i in range(np.uintp(n)):
            y, x, at_y, at_x = w[row_y + i], w[row_x + i], w[AT_VALUE + i], w[AT_COST + i]
            better = (x < at_x) | ((x == at_x) & (y > at_y))
            w[AT_VALUE + i] = y if better else at_y
            w[AT_COST + i] = x if better else at_x


@_exact
def _steepest(w, n, arms, values, costs):
    """From where each is, the arm of the steepest slope; of equal ones the dearest, then the most valuable."""
    for i in range(np.uintp(n)):
        w[BEST + i], w[TO_VALUE + i], w[TO_COST + i] = 0.0, w[AT_VALUE + i], w[AT_COST + i]
    for j in range(arms):
        row_y, row_x = values + np.uintp(j * PITCH), costs + np.uintp(j * PITCH)
        for i in range(np.uintp(n)):
            y, x = w[row_y + i], w[row_x + i]
            gain, price = y - w[AT_VALUE + i], x - w[AT_COST + i]
            to_y, to_x, best = w[TO_VALUE + i], w[TO_COST + i], w[BEST + i]
            slope = min(gain / price, _LARGEST)
            farther = (slope == best) & (best > 0) & ((x > to_x) | ((x == to_x) & (y > to_y)))
            better = (gain > 0) & (price > 0) & ((slope > best) | farther)
            w[TO_VALUE + i] = y if better else to_y
            w[TO_COST + i] = x if better else to_x
            w[BEST + i] = slope if better else best


@_exact
def _move(w, n, slope, gain, price):
    """Note the steps and take them; whether anyone moves."""
    moves = np.int64(0)
    for i in range(np.uintp(n)):
        s = min(w[BOUND + i], w[BEST + i])
        moves |= np.int64(1) if s > 0 else np.int64(0)
        gain[i], price[i] = w[TO_VALUE + i] - w[AT_VALUE + i], w[TO_COST + i] - w[AT_COST + i]
        slope[i] = s
        w[BOUND + i] = s
        w[AT_VALUE + i], w[AT_COST + i] = w[TO_VALUE + i], w[TO_COST + i]
    return moves != 0


@_exact
def bins_of(bits, n, shift, first, last, index):
    """As :func:`lightning_budget.allocation.sketch.bin_of`, of slopes given by their bits."""
    for i in range(np.uintp(n)):
        index[i] = min(max(((bits[i] - 1) >> shift) - first + 1, 0), last)


@_exact
def add_steps(v, c, stride, arms, start, stop, shift, first, total, cheapest):
    """Sum the steps of users ``start`` to ``stop`` by the bin of their slope.

    Args:
        v, c: flat memory of ``[K, N]``; stride: of arm and user, of v then c.
        shift, first: the layout of the bins, see :func:`bins_of`.
        total: ``[bins, 2]`` price and gain of the steps, added to.
        cheapest: ``[2, n]``: gets cost and value of the cheapest arms.

    Returns:
        Whether all numbers are finite.
    """
    values, costs = ARMS, ARMS + np.uintp(arms * PITCH)
    w = np.zeros(ARMS + np.uintp(2 * arms * PITCH))
    slope, gain, price = np.zeros((arms, PITCH)), np.zeros((arms, PITCH)), np.zeros((arms, PITCH))
    bits, index = slope.view(np.int64), np.zeros((arms, PITCH), np.int64)
    last = len(total) - 1
    finite = True
    for a in range(start, stop, BLOCK):
        n = min(BLOCK, stop - a)
        finite &= _bring_in(v, stride[0], stride[1], arms, a, n, w, values)
        finite &= _bring_in(c, stride[2], stride[3], arms, a, n, w, costs)
        _cheapest(w, n, arms, values, costs)
        for i in range(np.uintp(n)):
            cheapest[0, a - start + i], cheapest[1, a - start + i] = w[AT_COST + i], w[AT_VALUE + i]
        rounds = 0
        while rounds < arms - 1:
            _steepest(w, n, arms, values, costs)
            if not _move(w, n, slope[rounds], gain[rounds], price[rounds]):
                break
            bins_of(bits[rounds], n, shift, first, last, index[rounds])
            rounds += 1
        for i in range(n):
            for r in range(rounds):
                k = index[r, i]
                total[k, 0] += price[r, i]
                total[k, 1] += gain[r, i]
    return finite
