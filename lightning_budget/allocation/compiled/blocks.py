"""The pass over a slice of users with at most eight arms: settle or list each of them, block by block."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from lightning_budget.allocation.compiled.few import (
    BLOCK,
    at_both_ends,
    collect_rare,
    least_lossless,
    recheck,
)
from lightning_budget.allocation.compiled.sums import add_block, add_total

PITCH = BLOCK + 16
"""Not a multiple of a page, whose rows would fall into one cache set."""

LOW, BY_VALUE, BY_COST, TIE_HIGH, TINY_HIGH, TIE_LOW, TINY_LOW = range(7)
"""Places of the numbers of a bracket: lower multiplier; weights of value and cost at the upper end; two margins."""

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")


@_exact
def bring_in(x, stride_arm, stride_user, arms, start, n, piece):
    """Copy n users from ``start`` to rows of ``PITCH``, one an arm."""
    for i in range(n):
        base = (start + i) * stride_user
        for j in range(arms):
            piece[j * PITCH + i] = x[base + j * stride_arm]


@_exact
def _as_float(bits, one, one_bits):
    one_bits[0] = bits
    return one[0]


@_exact
def _twice(x):
    return x + x if math.isfinite(x + x) else x


@_exact
def pass_over_few(
    v,
    c,
    bits_v,
    bits_c,
    stride,
    offsets,
    piece_offsets,
    start,
    stop,
    q,
    exact_q,
    mask,
    spare,
    tie,
    tiny,
    write,
    arm,
    rows,
    value,
    cost,
    count,
    sums,
):
    """Settle users from ``start`` until ``stop`` or until the lists are full, within B brackets.

    Args:
        v, c: flat memory of ``[K, N]``; bits: the same as integers; stride: of arm and user, of v then c.
        offsets, piece_offsets: K places of the arms in that memory, and in a copy of a block.
        q: ``[B, 7]`` the brackets, in the precision of v; exact_q: the same in float64.
        mask: all bits but the sign; spare: exponents that sums in float64 can span.
        tie, tiny: margins in float64.
        write: whether ``arm [N]`` gets the arm at the upper end of the first bracket.
        rows: ``[B, n]``, value, cost: ``[B, K, n]``: of those left open, the first ``count [B]`` filled.
        sums: ``[B, 2, 2]``: settled spend and value, each as a float and the rest.

    Returns:
        Where it stopped, and whether all numbers are finite.
    """
    brackets, arms, room = len(q), len(offsets), rows.shape[1]
    direct = stride[1] == 1 and stride[3] == 1 and stride[0] == stride[2]
    length = 1 if direct else arms * PITCH
    piece_v, piece_c = np.empty(length, v.dtype), np.empty(length, v.dtype)
    piece_bits_v, piece_bits_c = piece_v.view(bits_v.dtype), piece_c.view(bits_v.dtype)
    paid, worth, one = np.zeros(BLOCK, v.dtype), np.zeros(BLOCK, v.dtype), np.zeros(1, v.dtype)
    one_bits = one.view(bits_v.dtype)
    is_open, no_arm, position = np.zeros(BLOCK, np.int8), np.zeros(BLOCK, np.int8), np.zeros(BLOCK + 1, np.uintp)
    words = np.zeros(BLOCK // 8 + 1, np.uintp)
    high, low = np.empty(BLOCK), np.empty(BLOCK)
    kind = v.dtype.type
    zero, far = v.dtype.type(0), v.dtype.type(16)
    top_v, top_c = mask ^ mask, mask ^ mask
    guess_v, guess_c = zero, zero
    finite = True
    for a in range(start, stop, BLOCK):
        n = min(BLOCK, stop - a)
        is_open[n:] = 0
        for b in range(brackets):
            if count[b] + n > room:
                return a, finite
        if direct:
            bv, bc, ibv, ibc, at, where, stride_in = v, c, bits_v, bits_c, a, offsets, stride[0]
        else:
            bring_in(v, stride[0], stride[1], arms, a, n, piece_v)
            bring_in(c, stride[2], stride[3], arms, a, n, piece_c)
            bv, bc, ibv, ibc, at, where, stride_in = (
                piece_v,
                piece_c,
                piece_bits_v,
                piece_bits_c,
                0,
                piece_offsets,
                PITCH,
            )
        bound_v, bound_c = guess_v, guess_c
        for b in range(brackets):
            p = q[b]
            here, to = (arm, a) if write and b == 0 else (no_arm, 0)
            while True:
                margin = p[TIE_HIGH] * (bound_v + p[BY_COST] * bound_c) + p[TINY_HIGH]
                margin_low = p[TIE_LOW] * (bound_v + p[LOW] * bound_c) + p[TINY_LOW]
                total, total_worth, small_c, small_v, top_v, top_c = at_both_ends(
                    bv,
                    bc,
                    ibv,
                    ibc,
                    mask,
                    where,
                    at,
                    n,
                    p[LOW],
                    p[BY_VALUE],
                    p[BY_COST],
                    margin,
                    margin_low,
                    kind(least_lossless(bound_c, spare)),
                    kind(least_lossless(bound_v, spare)),
                    to,
                    here,
                    is_open,
                    paid,
                    worth,
                )
                seen_v, seen_c = _as_float(top_v, one, one_bits), _as_float(top_c, one, one_bits)
                # Sizes are guessed from the blocks before, so that one reading does; not so for what is not finite.
                guessed = seen_v <= bound_v and seen_c <= bound_c
                if guessed or not (math.isfinite(bound_v) and math.isfinite(bound_c)):
                    break
                bound_v, bound_c = _twice(seen_v), _twice(seen_c)
            m = collect_rare(is_open, n, words, position)
            if 4 * m > n and math.isfinite(bound_v) and math.isfinite(bound_c):
                e = exact_q[b]
                recheck(
                    bv,
                    bc,
                    where,
                    at,
                    n,
                    e[LOW],
                    e[BY_VALUE],
                    e[BY_COST],
                    tie,
                    tiny,
                    e[BY_VALUE] == 0,
                    to,
                    here,
                    is_open,
                    paid,
                    worth,
                )
                m = collect_rare(is_open, n, words, position)
                small_c, small_v = True, True
            if small_c:
                add_block(paid, 0, n, bound_c, high, low, sums[b, 0])
            else:
                add_total(total, sums[b, 0])
            if write and b == 0:
                if small_v:
                    add_block(worth, 0, n, bound_v, high, low, sums[b, 1])
                else:
                    add_total(total_worth, sums[b, 1])
            k = count[b]
            for t in range(m):
                i = position[t]
                rows[b, k + t] = a + i
                place = np.uintp(at) + i
                for j in range(np.uintp(arms)):
                    value[b, j, k + t], cost[b, j, k + t] = bv[place], bc[place]
                    place += np.uintp(stride_in)
            count[b] = k + m
        seen_v, seen_c = _as_float(top_v, one, one_bits), _as_float(top_c, one, one_bits)
        finite = finite and math.isfinite(seen_v) and math.isfinite(seen_c)
        guess_v = bound_v if bound_v < far * seen_v else zero
        guess_c = bound_c if bound_c < far * seen_c else zero
    return stop, finite
