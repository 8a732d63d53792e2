"""The pass over a slice of users with many arms: settle or list each of them, block by block."""

from __future__ import annotations

import numba as nb
import numpy as np

from lightning_budget.allocation.compiled.scores import (
    ARM,
    AT_LOW,
    BEST,
    BLOCK,
    LARGEST_COST,
    LARGEST_VALUE,
    PAID,
    PITCH,
    ROWS,
    SECOND_LOW,
    WORTH,
    WRONG,
    fill,
    judge,
    scores_of_four,
    scores_of_one,
    sizes_of_four,
    sizes_of_one,
)
from lightning_budget.allocation.compiled.sums import add_block, largest

_SPARE = ROWS * PITCH - 1
_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def _bring_in(x, stride_arm, stride_user, arms, start, n, piece):
    for i in range(n):
        base = (start + i) * stride_user
        for j in range(arms):
            piece[j * PITCH + i] = x[base + j * stride_arm]


@_exact
def pass_over(v, c, stride, arms, start, stop, q, numbers, w, bits, write, arm, rows, value, cost, count, sums):
    """Settle users from ``start`` until ``stop`` or until the lists are full, within B brackets.

    Args:
        v, c: flat memory of ``[K, N]``; stride: of arm and user, of v then c.
        q: ``[B, 8]`` the brackets, in the precision of v; numbers: ``[K]`` 0, 1, 2, … in it.
        w: scratch of ``ROWS`` · ``PITCH``; bits: the same memory as integers.
        write: whether ``arm [N]`` gets the arm at the upper end of the first bracket.
        rows: ``[B, n]``, value, cost: ``[B, K, n]``: of those left open, the first ``count [B]`` filled.
        sums: ``[B, 2, 2]``: settled spend and value, each as a float and the rest.

    Returns:
        Where it stopped, and whether all numbers are finite.
    """
    brackets = len(q)
    direct = stride[1] == 1 and stride[3] == 1
    piece_v = np.empty(1 if direct else arms * PITCH, v.dtype)
    piece_c = np.empty(1 if direct else arms * PITCH, v.dtype)
    is_open, words = np.zeros(BLOCK, np.int8), BLOCK // 8
    eight = is_open.view(np.int64)
    high, low = np.empty(BLOCK), np.empty(BLOCK)
    zero, finite = w.dtype.type(0), True
    for a in range(start, stop, BLOCK):
        n = min(BLOCK, stop - a)
        for b in range(brackets):
            if count[b] + n > rows.shape[1]:
                return a, finite
        bv, bc, at_v, at_c, sv, sc = v, c, a, a, stride[0], stride[2]
        if not direct:
            _bring_in(v, stride[0], stride[1], arms, a, n, piece_v)
            _bring_in(c, stride[2], stride[3], arms, a, n, piece_c)
            bv, bc, at_v, at_c, sv, sc = piece_v, piece_c, 0, 0, PITCH, PITCH
        fill(w, n, LARGEST_VALUE, WRONG, zero)
        j = 0
        while j + 4 <= arms:
            sizes_of_four(bv, at_v + j * sv, sv, bc, at_c + j * sc, sc, w, n, zero)
            j += 4
        while j < arms:
            sizes_of_one(bv, at_v + j * sv, bc, at_c + j * sc, w, n, zero)
            j += 1
        bound_v = largest(w, bits, LARGEST_VALUE, n, _SPARE)
        bound_c = largest(w, bits, LARGEST_COST, n, _SPARE)
        for b in range(brackets):
            one = q[b]
            fill(w, n, BEST, SECOND_LOW, zero - np.inf)
            fill(w, n, AT_LOW, ARM, zero)
            j = 0
            while j + 4 <= arms:
                scores_of_four(bv, at_v + j * sv, sv, bc, at_c + j * sc, sc, w, n, one, j, numbers)
                j += 4
            while j < arms:
                scores_of_one(bv, at_v + j * sv, bc, at_c + j * sc, w, n, one, j, numbers)
                j += 1
            judge(w, n, one, is_open)
            if n < BLOCK:
                is_open[n:] = 0
            add_block(w, PAID, n, bound_c, high, low, sums[b, 0])
            if write:
                add_block(w, WORTH, n, bound_v, high, low, sums[b, 1])
                for i in range(np.uintp(n)):
                    arm[np.uintp(a) + i] = w[ARM + i]
            k = count[b]
            for word in range(words):
                if eight[word] != 0:
                    for i in range(8 * word, 8 * word + 8):
                        if is_open[i]:
                            rows[b, k] = a + i
                            for j in range(arms):
                                value[b, j, k] = bv[at_v + j * sv + i]
                                cost[b, j, k] = bc[at_c + j * sc + i]
                            finite = finite and w[WRONG + np.uintp(i)] == zero
                            k += 1
            count[b] = k
    return stop, finite
