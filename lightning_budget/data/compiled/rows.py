"""Rows of a piece in the order of the batches of a window, and batches out of many pieces.

Rows are read one after the other, and each batch's share of the piece is written to from its front on: as many places
of memory are at work as there are batches, all within what the cache holds of a piece. Places and rows are unsigned,
which saves looking for negative ones.
"""

from __future__ import annotations

import numba as nb
import numpy as np

CHUNK = 8
"""Entries of a list that are copied at a time, with what follows them."""


@nb.njit(nogil=True, cache=True)
def rows_of(part, split, out):
    """Write the numbers of the rows of a split, ``part[i] == split``; how many there are."""
    n = 0
    for i in range(len(part)):
        out[n] = i
        n += part[i] == split
    return n


@nb.njit(nogil=True, cache=True)
def batch_of_rows(order, cuts, batch):
    """``batch[order[i]] = b`` for ``cuts[b] ≤ i < cuts[b + 1]``."""
    for b in range(len(cuts) - 1):
        for i in range(cuts[b], cuts[b + 1]):
            batch[np.uintp(order[i])] = b


@nb.njit(nogil=True, cache=True)
def places(batch, position, ends, place, row):
    """Sort the rows of a piece by batch, those of a batch in their order.

    Args:
        batch: ``[n]`` of each row; position: of the first row.
        ends: ``[B + 1]`` zeros, then where each batch's rows begin, and where all end.
        place, row: ``[n]``, written: where each row goes, and the position of the row at each place.
    """
    for k in range(len(batch)):
        ends[batch[k] + 1] += np.uint32(1)
    for b in range(len(ends) - 1):
        ends[b + 1] += ends[b]
    ahead = ends.copy()
    for k in range(len(batch)):
        to = ahead[batch[k]]
        ahead[batch[k]] = to + np.uint32(1)
        place[k] = to
        row[to] = k + position


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
def known(source, table, low, out):
    """``out[k]`` = what the table has for ``source[k]``, see :func:`put_known`."""
    last = len(table) - 1
    for k in range(len(source)):
        out[k] = table[min(max(np.int64(source[k]) - low, 0), last)]


@nb.njit(nogil=True, cache=True)
def put_lengths(offsets, rows, place, batch, out, total):
    """``out[place[k]]`` = length of list ``rows[k]``, which is added to ``total[batch[k]]``."""
    for k in range(len(rows)):
        row = np.uintp(rows[k])
        length = offsets[row + np.uintp(1)] - offsets[row]
        out[place[k]] = length
        total[batch[k]] += length


@nb.njit(nogil=True, cache=True)
def put_entries(source, offsets, rows, batch, ahead, spare, out):
    """Write the entries of list ``rows[k]`` from ``out[ahead[batch[k]]]`` on, and move that on.

    Args:
        spare: whether each batch's room ends in ``CHUNK`` entries that may be overwritten: whole chunks are copied
            then, as short loops of unknown lengths cost more.
    """
    for k in range(len(rows)):
        row, there = np.uintp(rows[k]), np.uintp(ahead[batch[k]])
        start, stop = np.uintp(offsets[row]), np.uintp(offsets[row + np.uintp(1)])
        ahead[batch[k]] += np.int64(stop - start)
        if spare and stop + np.uintp(CHUNK) <= np.uintp(len(source)):
            while start < stop:
                for j in range(CHUNK):
                    out[there + np.uintp(j)] = source[start + np.uintp(j)]
                start += np.uintp(CHUNK)
                there += np.uintp(CHUNK)
        else:
            for i in range(start, stop):
                out[there] = source[i]
                there += np.uintp(1)


@nb.njit(nogil=True, cache=True)
def gather(source, starts, stops, out):
    """Write ``source[starts[p] : stops[p]]`` for all p one after the other, as numbers of the type of ``out``."""
    at = 0
    for p in range(len(starts)):
        start, n = np.intp(starts[p]), np.intp(stops[p]) - np.intp(starts[p])
        for i in range(n):
            out[at + i] = source[start + i]
        at += n
