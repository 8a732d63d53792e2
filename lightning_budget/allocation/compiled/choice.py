"""The policy of users with at most eight arms: a clear lead by scores, whatever is closer by slopes.

As in ``few``, loops over arms run over a tuple, whose length the compiler knows, and indices are unsigned: every number
of a user stays in a register, and the loops over users become vector instructions.
"""

from __future__ import annotations

import numba as nb
import numpy as np

ARM_BITS = 4
"""A number of more bits, or below 0, is no arm."""

FEW = 16
"""One in so many undecided users of a block, and the block is decided again as a whole: vectors beat single users."""

_exact = nb.njit(nogil=True, cache=True, error_model="numpy")
_filter = nb.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_exact
def pitch_of(block):
    """Distance of the rows of a copied block: not a multiple of a page, which would fall into one cache set."""
    return block + 16


@_exact
def bring_in(x, places, stride_arm, stride_user, start, n, piece, pitch):
    """Copy n users from ``start`` to rows of ``pitch``, one an arm; fastest where a user's numbers lie side by side."""
    arms, start, n, pitch = np.uintp(len(places)), np.uintp(start), np.uintp(n), np.uintp(pitch)
    if stride_arm == 1 and stride_user == len(places):
        # Every distance is known to the compiler, so it reads whole vectors and shuffles them.
        for i in range(n):
            j = np.uintp(0)
            for _ in places:
                piece[j * pitch + i] = x[(start + i) * arms + j]
                j += np.uintp(1)
    else:
        for j in range(len(places)):
            row = np.uintp(j) * pitch
            for i in range(n):
                piece[row + i] = x[(start + i) * np.uintp(stride_user) + np.uintp(j * stride_arm)]


@_filter
def by_scores(v, c, places, at, n, by_value, by_cost, by_size, tie, tiny, out, to):
    r"""Write to ``out [to:]`` the arms of n users from position ``at`` who lead clearly, no arm for the others.

    With size :math:`s = \sum_j |v_j|` + ``by_size`` :math:`\sum_j |c_j|`, every arm within ``tie`` s + ``tiny`` of the
    best one adds 16 and its own number: a sum below 32 is of one arm. Where s is finite, so are numbers and products.

    Returns:
        All written numbers, or-ed.
    """
    zero, endless = v.dtype.type(0), v.dtype.type(np.inf)
    one, first, none = np.int32(1), np.int32(1 << ARM_BITS), np.int32(-1)
    seen = np.int32(0)
    at, to = np.uintp(at), np.uintp(to)
    for i in range(np.uintp(n)):
        best, size_v, size_c = -endless, zero, zero
        for place_v, place_c in places:
            y, x = v[place_v + at + i], c[place_c + at + i]
            best = max(best, by_value * y - by_cost * x)
            size_v += abs(y)
            size_c += abs(x)
        size = size_v + by_size * size_c
        near = best - (tie * size + tiny)
        total, number = np.int32(0), first
        for place_v, place_c in places:
            y, x = v[place_v + at + i], c[place_c + at + i]
            total += number if by_value * y - by_cost * x >= near else np.int32(0)
            number += one
        arm = total - first if size < endless else none
        seen |= arm
        out[to + i] = arm
    return seen


@_exact
def by_slopes(v, c, places, at, n, multiplier, out, to):
    """Write the arms of n users, compared in turn by float64 slopes; see :func:`policy_treatment`.

    Args:
        multiplier: ``inf`` stands for the largest float, which no slope exceeds.

    Returns:
        Whether their numbers are finite.
    """
    wrong = np.int32(0)
    at, to = np.uintp(at), np.uintp(to)
    for i in range(np.uintp(n)):
        best_v, best_c = np.float64(v[places[0][0] + at + i]), np.float64(c[places[0][1] + at + i])
        best, j = np.int32(0), np.int32(0)
        for place_v, place_c in places:
            y, x = np.float64(v[place_v + at + i]), np.float64(c[place_c + at + i])
            wrong |= np.int32(0) if (y - y == 0) & (x - x == 0) else np.int32(1)
            gain, price = y - best_v, x - best_c
            steeper = (gain / price > multiplier) ^ (price < 0)
            better = ((price == 0) & (gain > 0)) | ((price != 0) & steeper)
            best_v = y if better else best_v
            best_c = x if better else best_c
            best = j if better else best
            j += np.int32(1)
        out[to + i] = best
    return wrong == 0


@_exact
def choose_few(v, c, stride, places, block, start, stop, q, multiplier, out):
    """Best arms of users ``start`` to ``stop`` at a multiplier.

    Args:
        v, c: flat memory of ``[K, N]``; stride: of arm and user, of v then c.
        places: K pairs, where the arms begin: in that memory, or in a copy of a block if that is not contiguous over
            users.
        block: users of a block.
        q: ``[5]`` for :func:`by_scores`, in the precision of v; multiplier: for :func:`by_slopes`.
        out: ``[N]`` int64.

    Returns:
        Whether all numbers are finite.
    """
    direct = stride[1] == 1 and stride[3] == 1
    pitch = pitch_of(block)
    room = 1 if direct else len(places) * pitch
    piece_v, piece_c = np.empty(room, v.dtype), np.empty(room, v.dtype)
    by_value, by_cost, by_size, tie, tiny = q
    finite = True
    for a in range(start, stop, block):
        n = min(block, stop - a)
        bv, bc, at = v, c, a
        if not direct:
            bring_in(v, places, stride[0], stride[1], a, n, piece_v, pitch)
            bring_in(c, places, stride[2], stride[3], a, n, piece_c, pitch)
            bv, bc, at = piece_v, piece_c, 0
        seen = by_scores(bv, bc, places, at, n, by_value, by_cost, by_size, tie, tiny, out, a)
        if seen >> ARM_BITS == 0:
            continue
        undecided = 0
        for i in range(n):
            undecided += out[a + i] >> ARM_BITS != 0
        if undecided * FEW > n:
            finite &= by_slopes(bv, bc, places, at, n, multiplier, out, a)
        else:
            for i in range(n):
                if out[a + i] >> ARM_BITS != 0:
                    finite &= by_slopes(bv, bc, places, at + i, 1, multiplier, out, a + i)
    return finite
