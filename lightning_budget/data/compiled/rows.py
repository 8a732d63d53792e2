"""Rows of a file in the order of a window.

Rows are read one after the other, and each batch of the window is written to from its front on: as many places of
memory are at work as there are batches. Places and rows are unsigned, which saves looking for negative ones.
"""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(nogil=True, cache=True)
def places(order, first, position, cuts, batch, place, row):
    """Where the rows of a window go, see ``WindowOrder``.

    Args:
        order: ``[N]``; first: ``[P + 1]``, where each piece begins; position: ``[P]``; cuts: ``[B + 1]``.
        batch: ``[N]``, for work; place, row: ``[N]``, written.
    """
    for b in range(len(cuts) - 1):
        for i in range(cuts[b], cuts[b + 1]):
            batch[np.uintp(order[i])] = b
    ahead = cuts[:-1].astype(np.uint32)
    for piece in range(len(position)):
        shift = position[piece] - first[piece]
        for i in range(first[piece], first[piece + 1]):
            to = ahead[batch[i]]
            ahead[batch[i]] += np.uint32(1)
            place[i] = to
            row[to] = i + shift


@nb.njit(nogil=True, cache=True)
def put(source, rows, place, out):
    """``out[place[k]] = source[rows[k]]``."""
    for k in range(len(rows)):
        out[place[k]] = source[rows[k]]


@nb.njit(nogil=True, cache=True)
def put_known(source, table, low, rows, place, out):
    """``out[place[k]]`` = what the table has for ``source[rows[k]]``; it begins with that of ``low``."""
    last = len(table) - 1
    for k in range(len(rows)):
        out[place[k]] = table[min(max(np.int64(source[rows[k]]) - low, 0), last)]


@nb.njit(nogil=True, cache=True)
def put_lengths(offsets, rows, place, out):
    """``out[place[k]]`` = length of list ``rows[k]``."""
    for k in range(len(rows)):
        row = np.uintp(rows[k])
        out[place[k]] = offsets[row + np.uintp(1)] - offsets[row]


@nb.njit(nogil=True, cache=True)
def put_entries(source, offsets, rows, place, to, out):
    """Write the entries of list ``rows[k]`` from ``out[to[place[k]]]`` on."""
    for k in range(len(rows)):
        row, there = np.uintp(rows[k]), np.uintp(to[place[k]])
        for i in range(np.uintp(offsets[row]), np.uintp(offsets[row + np.uintp(1)])):
            out[there] = source[i]
            there += np.uintp(1)


@nb.njit(nogil=True, cache=True)
def put_known_entries(source, table, low, offsets, rows, place, to, out):
    """As :func:`put_entries`, of what the table has for each entry, as :func:`put_known`."""
    last = len(table) - 1
    for k in range(len(rows)):
        row, there = np.uintp(rows[k]), np.uintp(to[place[k]])
        for i in range(np.uintp(offsets[row]), np.uintp(offsets[row + np.uintp(1)])):
            out[there] = table[min(max(np.int64(source[i]) - low, 0), last)]
            there += np.uintp(1)
