"""Which training rows come when: a function of (seed, epoch, place) alone, known before anything is read.

The pieces of the source are put in a new order every epoch, and their training rows, counted through in that order, are
cut into equal ranges, one a rank, and these into one a worker; a piece on a border is read by both neighbours::

    pieces in this epoch's order     [ 2         | 0      | 3    | 1         ]
    rows of rank 0, rank 1           [ a a a a a a a a | b b b b b b b b     ]
    windows of rank 1, ≤ buffer            [ b b b b b | b b b     ]

A stream reads a window at a time, shuffles the rows in it, and cuts batches out of the windows one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PIECES, _ROWS = 0, 1


@dataclass(frozen=True)
class Segment:
    """Training rows ``start … stop`` − 1 of a piece, counted in the order of the file."""

    piece: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """What a stream holds in memory at a time.

    Attributes:
        number: among the windows of its stream.
        first: rows of the stream before it.
    """

    number: int
    first: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.segments)


@dataclass(frozen=True)
class EpochPlan:
    """Everything that decides the order of one epoch.

    Attributes:
        piece_rows: training rows of each piece.
        batch_rows: rows of a rank's batch.
        buffer_rows: rows of a window, unless a single piece has more.
        rank, ranks: which share of the rows is ours; workers: streams of each rank, at least 1.
        seed, epoch: name the order.
    """

    piece_rows: tuple[int, ...]
    batch_rows: int
    buffer_rows: int
    rank: int
    ranks: int
    workers: int
    seed: int
    epoch: int

    @property
    def rows(self) -> int:
        """Of every rank: all rows over all ranks. Fewer rows than there are ranks are left out, others every epoch."""
        return sum(self.piece_rows) // self.ranks

    @property
    def batches(self) -> int:
        """Of every rank; the last one holds what is left."""
        return -(-self.rows // self.batch_rows)

    def stream_batches(self, worker: int) -> int:
        """Of a worker: every ``workers``-th of the rank's batches, from number ``worker`` on."""
        return len(range(worker, self.batches, self.workers))

    def windows(self, worker: int) -> list[Window]:
        """What a worker reads, in order."""
        rows = [self.stream_batches(w) * self.batch_rows for w in range(self.workers)]
        if self.batches:
            rows[(self.batches - 1) % self.workers] -= self.batches * self.batch_rows - self.rows
        start = self.rank * self.rows + sum(rows[:worker])
        windows: list[Window] = []
        held: list[Segment] = []
        count = first = 0
        for segment in self._segments(start, start + rows[worker]):
            if held and count + segment.rows > self.buffer_rows:
                windows.append(Window(len(windows), first, tuple(held)))
                held, count, first = [], 0, first + count
            held.append(segment)
            count += segment.rows
        return [*windows, Window(len(windows), first, tuple(held))] if held else windows

    def order(self, worker: int, window: Window) -> Tensor:
        """``[window.rows]`` in which order a window's rows are taken."""
        return _permutation(window.rows, self.seed, self.epoch, _ROWS, self.rank, worker, window.number)

    def _segments(self, start: int, stop: int) -> list[Segment]:
        order = _permutation(len(self.piece_rows), self.seed, self.epoch, _PIECES).numpy()
        rows = np.array(self.piece_rows, np.int64)[order]
        ends: NDArray[np.int64] = np.concatenate([[0], np.cumsum(rows)])
        first = int(np.searchsorted(ends, start, side="right")) - 1
        last = int(np.searchsorted(ends, stop, side="left"))
        return [
            Segment(int(piece), max(start, a) - a, min(stop, b) - a)
            for piece, (a, b) in zip(order[first:last], pairwise(ends[first : last + 1].tolist()), strict=True)
            if min(stop, b) > max(start, a)
        ]


def _permutation(n: int, *key: int) -> Tensor:
    """Of int32 where that suffices; the same of int64."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    kind = torch.int32 if n < 1 << 31 else torch.int64
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed), dtype=kind)


def first_rows(piece_rows: Sequence[int]) -> list[int]:
    """Position of each piece's first row."""
    return [0, *np.cumsum(np.array(piece_rows, np.int64))[:-1].tolist()]
