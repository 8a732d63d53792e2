"""Rows of a window, each piece's sorted by batch, so that a batch is a run of every piece in every column.

Each row is written once, while its piece lies in the cache, and read once, when its batch is made. A batch holds the
rows that the order of the window gives it, in the order in which they are read::

    order of the window   b2 a3 a0 c1 | b0 c0 a1 b1 | …       batches of four rows, of pieces a, b and c
    a column              a0 a3 | a1 | …    b2 | b0 b1 | …    c1 | c0 | …
    the first batch       a0 a3 b2 c1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.batch import KeyedJaggedTensor, RCTBatch
from lightning_budget.data.compiled import usable
from lightning_budget.data.lookup import row_type
from lightning_budget.data.stream.encoding import Encoded, EntryRuns, type_of
from lightning_budget.schema import DataSchema

Column = NDArray[Any]
Ints = NDArray[np.integer[Any]]
NONE = EntryRuns(*(np.empty(0, np.int64) for _ in range(3)))


class WindowOrder:
    """Which batch each row of a window goes to.

    Args:
        order: ``[N]`` int32, or int64, a permutation of the rows counted through all pieces.
        cuts: ``[B + 1]`` from 0 to N, where batches begin and end in it.

    Attributes:
        batch: ``[N]`` of each row; sizes: B rows of each batch.
    """

    def __init__(self, order: Ints, cuts: Ints) -> None:
        n, self.sizes = len(order), np.diff(cuts).tolist()
        if n >= 1 << 32:
            raise ValueError(f"a window of {n} rows")
        self.batch = np.empty(n, np.uint8 if len(self.sizes) <= 1 << 8 else np.uint32)
        if usable():
            from lightning_budget.data.compiled.rows import batch_of_rows

            batch_of_rows(order, cuts, self.batch)
        else:
            self.batch[order] = np.repeat(np.arange(len(self.sizes)), self.sizes)


def sorted_by_batch(batch: Ints, batches: int, position: int, row: Ints) -> tuple[Ints, Ints]:
    """Sort the rows of a piece by batch, those of a batch in their order.

    Args:
        batch: ``[n]`` of each row; position: of the first row.
        row: ``[n]``, written: position of the row at each place.

    Returns:
        ``[n]`` where each row goes, and ``[B + 1]`` where each batch's rows begin, and where all end.
    """
    place, ends = np.empty(len(batch), np.uint32), np.zeros(batches + 1, np.uint32)
    if usable():
        from lightning_budget.data.compiled.rows import places

        places(batch, position, ends, place, row)
    else:
        layout = np.argsort(batch, kind="stable")
        place[layout] = np.arange(len(batch))
        row[:] = layout + position
        ends[1:] = np.cumsum(np.bincount(batch, minlength=batches))
    return place, ends


Gather = Callable[[Column, Ints, Ints, Column], None]


def _gather() -> Gather:
    """What writes the runs ``source[starts[p] : stops[p]]`` one after the other, as numbers of the type of ``out``."""
    if not usable():
        return _gather_plainly
    from lightning_budget.data.compiled.rows import gather

    return gather


def _gather_plainly(source: Column, starts: Ints, stops: Ints, out: Column) -> None:
    np.concatenate([source[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)], out=out)


@dataclass(frozen=True)
class Rows:
    """n rows as runs ``starts[p] … stops[p]`` − 1 of columns, whose whole numbers may be smaller than a batch has them.

    Attributes:
        rows: n; starts, stops: ``[P]``.
        dense: D columns; fields: those of :class:`RCTBatch` but dense and the ids, ``row`` among them.
        ids: of id features in key order, of lists their lengths.
        entries: of lists, an array a run.
    """

    rows: int
    starts: Ints
    stops: Ints
    dense: tuple[Column, ...]
    fields: Mapping[str, Column]
    ids: Mapping[str, Ints]
    entries: Mapping[str, Sequence[Ints]]

    def copy(self) -> Rows:
        """As one run, in memory of their own."""
        n, gather = self.rows, _gather()

        def alone(source: Column) -> Column:
            gather(source, self.starts, self.stops, out := np.empty(n, source.dtype))
            return out

        return Rows(
            n,
            np.zeros(1, np.uint32),
            np.full(1, n, np.uint32),
            tuple(map(alone, self.dense)),
            {name: alone(x) for name, x in self.fields.items()},
            {name: alone(x) for name, x in self.ids.items()},
            {name: [np.concatenate(runs)] for name, runs in self.entries.items()},
        )


def batch_of(parts: Sequence[Rows]) -> RCTBatch:
    """One part after the other, as a batch in memory of its own."""
    first, gather, at = parts[0], _gather(), 0
    n = sum(p.rows for p in parts)
    dense = np.empty((n, len(first.dense)), np.float32)
    fields = {name: np.empty(n, np.int64 if x.dtype.kind in "iu" else x.dtype) for name, x in first.fields.items()}
    lengths = np.ones((len(first.ids), n), np.int64)
    entries = {key: [run for p in parts for run in p.entries[key]] for key in first.entries}
    counts = [sum(map(len, entries[key])) if key in entries else n for key in first.ids]
    values = np.empty(sum(counts), np.int64)
    values_of = [values[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
    for part in parts:
        starts, stops = part.starts, part.stops
        here = slice(at, at := at + part.rows)
        for column, out in zip(part.dense, dense.T, strict=True):
            gather(column, starts, stops, out[here])
        for name, out in fields.items():
            gather(part.fields[name], starts, stops, out[here])
        for (key, column), ones, ids in zip(part.ids.items(), lengths, values_of, strict=True):
            gather(column, starts, stops, ones[here] if key in entries else ids[here])
    for key, ids in zip(first.ids, values_of, strict=True):
        if key in entries:
            np.concatenate(entries[key], out=ids)
    tensors = {name: torch.from_numpy(x) for name, x in fields.items()}
    sparse = None
    if first.ids:
        keys, flat = list(first.ids), torch.from_numpy(lengths.reshape(-1))
        sparse = KeyedJaggedTensor(keys, torch.from_numpy(values), lengths=flat)
    return RCTBatch(torch.from_numpy(dense), sparse, **tensors)


class WindowRows:
    """The rows of a window, put in by pieces, in any order and on any thread.

    Args:
        order: where they go.
        sizes: ``[P]`` rows of each piece; position: ``[P]`` of each piece's first row.
        schema: what they hold; weighted: whether they have sample weights.
    """

    def __init__(
        self, order: WindowOrder, sizes: Sequence[int], position: Sequence[int], schema: DataSchema, weighted: bool
    ) -> None:
        n, pieces = len(order.batch), len(sizes)
        self._order, self._position = order, position
        self._first = np.cumsum([0, *sizes]).tolist()
        self._ends = np.zeros((len(order.sizes) + 1, pieces), np.uint32)
        self._dense = tuple(np.empty(n, np.float32) for _ in schema.dense)
        outcomes = ("value", "cost", "propensity", *(["weight"] if weighted else []))
        self._fields: dict[str, Column] = {name: np.empty(n, np.float32) for name in outcomes}
        self._fields["treatment"] = np.empty(n, row_type(len(schema.treatments)))
        self._row = np.empty(n, np.int64)
        self._ids = {f.name: np.empty(n, np.int32 if f.is_list else type_of(f)) for f in schema.sparse}
        self._runs: dict[str, list[EntryRuns]] = {f.name: [NONE] * pieces for f in schema.sparse if f.is_list}

    def put(self, number: int, found: Encoded, index: Ints) -> None:
        """Take in a piece.

        Args:
            found: some rows, those of the piece among them; index: which they are.
        """
        first, stop = self._first[number : number + 2]
        batch, batches = self._order.batch[first:stop], len(self._order.sizes)
        place, ends = sorted_by_batch(batch, batches, self._position[number], self._row[first:stop])
        self._ends[:, number] = ends + np.uint32(first)
        for source, out in zip(found.dense, self._dense, strict=True):
            source.put(index, place, out[first:stop])
        for name, out in self._fields.items():
            found.outcomes[name].put(index, place, out[first:stop])
        for name, out in self._ids.items():
            if name in self._runs:
                self._runs[name][number] = found.lists[name].put(index, place, batch, batches, out[first:stop])
            else:
                found.ids[name].put(index, place, out[first:stop])

    def of_batch(self, number: int) -> Rows:
        """The rows of a batch, when all pieces have been taken in; views."""
        entries = {name: [runs.of_batch(number) for runs in pieces] for name, pieces in self._runs.items()}
        fields = {"row": self._row, **self._fields}
        ends, rows = self._ends, self._order.sizes[number]
        return Rows(rows, ends[number], ends[number + 1], self._dense, fields, self._ids, entries)
