"""Rows of a window in the order of the batches, so that a batch is a slice of every column.

Each row is written once, to its place, while the columns of its piece lie in the cache. A batch holds the rows that the
order of the window gives it, in the order in which they are read::

    order of the window   b2 a3 a0 c1 | b0 c0 a1 b1 | …       batches of four rows, of pieces a, b and c
    columns               a0 a3 b2 c1 | a1 b0 b1 c0 | …
    place                 of a0: 0, of a1: 4, of a3: 1, …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.batch import KeyedJaggedTensor, RCTBatch
from lightning_budget.data.compiled import usable
from lightning_budget.data.stream.encoding import IN_TABLE, Encoded, ListSource, type_of
from lightning_budget.schema import DataSchema

Column = NDArray[Any]
Ints = NDArray[np.integer[Any]]


class WindowOrder:
    """Where the rows of a window go: to the batches that a permutation gives them, there in the order of the files.

    Args:
        order: ``[N]`` int32, or int64, of rows counted through all pieces.
        sizes: ``[P]`` rows of each piece; position: ``[P]`` of each piece's first row.
        cuts: ``[B + 1]`` from 0 to N, where batches begin and end.

    Attributes:
        place: for each piece, where its rows go.
        row: ``[N]`` position of the row at each place.
    """

    def __init__(self, order: Ints, sizes: Sequence[int], position: Sequence[int], cuts: Ints) -> None:
        n, batches, first = len(order), len(cuts) - 1, np.cumsum([0, *sizes])
        if n >= 1 << 32:
            raise ValueError(f"a window of {n} rows")
        batch = np.empty(n, np.uint8 if batches <= 1 << 8 else np.uint32)
        place, self.row, shift = np.empty(n, np.uint32), np.empty(n, np.int64), np.array(position, np.int64)
        if usable():
            from lightning_budget.data.compiled.rows import places

            places(order, first, shift, cuts, batch, place, self.row)
        else:
            batch[order] = np.repeat(np.arange(batches), np.diff(cuts))
            layout = np.argsort(batch, kind="stable")
            place[layout] = np.arange(n)
            self.row[:] = layout + np.repeat(shift - first[:-1], sizes).take(layout)
        self.place = np.split(place, first[1:-1])


@dataclass(frozen=True)
class Lists:
    """A list of ids a row: ``entries[offsets[i] : offsets[i + 1]]``; offsets ``[n + 1]`` need not begin at 0."""

    entries: Ints
    offsets: Ints

    def cut(self, start: int, stop: int) -> Lists:
        """Of rows ``start … stop`` − 1; a view."""
        return Lists(self.entries, self.offsets[start : stop + 1])

    def held(self) -> Ints:
        """The entries of these rows alone; a view."""
        return self.entries[self.offsets[0] : self.offsets[-1]]

    def copy(self) -> Lists:
        """In memory of their own."""
        return Lists(self.held().copy(), self.offsets - self.offsets[0])


@dataclass(frozen=True)
class Rows:
    """n rows as columns; whole numbers may be smaller than a batch has them.

    Attributes:
        dense: ``[n, D]``.
        fields: those of :class:`RCTBatch` but dense and the ids, ``row`` among them.
        ids: id features in key order.
    """

    dense: Column
    fields: dict[str, Column]
    ids: dict[str, Ints | Lists]

    def __len__(self) -> int:
        return len(self.fields["row"])

    def cut(self, start: int, stop: int) -> Rows:
        """Rows ``start … stop`` − 1; a view."""
        ids = {k: x.cut(start, stop) if isinstance(x, Lists) else x[start:stop] for k, x in self.ids.items()}
        return Rows(self.dense[start:stop], {name: x[start:stop] for name, x in self.fields.items()}, ids)

    def copy(self) -> Rows:
        """In memory of their own."""
        fields = {name: x.copy() for name, x in self.fields.items()}
        return Rows(self.dense.copy(), fields, {name: x.copy() for name, x in self.ids.items()})


def batch_of(parts: Sequence[Rows]) -> RCTBatch:
    """One part after the other, as a batch in memory of its own."""
    dense = np.concatenate([p.dense for p in parts])
    fields = {}
    for name, first in parts[0].fields.items():
        kind = np.int64 if first.dtype.kind == "i" else first.dtype
        fields[name] = torch.from_numpy(np.concatenate([p.fields[name] for p in parts], dtype=kind))
    return RCTBatch(torch.from_numpy(dense), _jagged(parts), **fields)


def _jagged(parts: Sequence[Rows]) -> KeyedJaggedTensor | None:
    keys = list(parts[0].ids)
    if not keys:
        return None
    n = sum(map(len, parts))
    values: list[Ints] = []
    lengths = np.ones((len(keys), n), np.int64)
    for i, key in enumerate(keys):
        start = 0
        for part in parts:
            column = part.ids[key]
            if isinstance(column, Lists):
                np.subtract(column.offsets[1:], column.offsets[:-1], out=lengths[i, start : start + len(part)])
                column = column.held()
            values.append(column)
            start += len(part)
    ids = torch.from_numpy(np.concatenate(values, dtype=np.int64))
    return KeyedJaggedTensor(keys, ids, lengths=torch.from_numpy(lengths.reshape(-1)))


class WindowRows:
    """The rows of a window, put in by pieces, in any order and on any thread.

    Args:
        order: where they go.
        schema: what they hold; weighted: whether they have sample weights.
    """

    def __init__(self, order: WindowOrder, schema: DataSchema, weighted: bool) -> None:
        n = len(order.row)
        self._order = order
        self._dense = np.empty((n, len(schema.dense)), np.float32)
        outcomes = ("value", "cost", "propensity", *(["weight"] if weighted else []))
        self._fields: dict[str, Column] = {name: np.empty(n, np.float32) for name in outcomes}
        self._fields["treatment"] = np.empty(n, IN_TABLE)
        self._ids = {f.name: np.empty(n, type_of(f)) for f in schema.sparse if not f.is_list}
        self._offsets = {f.name: np.zeros(n + 1, np.int64) for f in schema.sparse if f.is_list}
        self._entries: dict[str, Ints] = {}
        self._schema = schema
        self._lists: dict[int, tuple[Ints, Mapping[str, ListSource]]] = {}

    def put(self, number: int, found: Encoded, index: Ints) -> None:
        """Take in a piece: all but the entries of lists, which wait until the lengths of all are known.

        Args:
            found: some rows, those of the piece among them; index: which they are.
        """
        place = self._order.place[number]
        for i, source in enumerate(found.dense):
            source.put(index, place, self._dense[:, i])
        for name, out in self._fields.items():
            found.outcomes[name].put(index, place, out)
        for name, out in self._ids.items():
            found.ids[name].put(index, place, out)
        for name, offsets in self._offsets.items():
            found.lists[name].put_lengths(index, place, offsets[1:])
        self._lists[number] = index, found.lists

    def lay_out(self) -> None:
        """Say where every list goes; when all pieces have been taken in."""
        kinds = {f.name: type_of(f) for f in self._schema.sparse}
        for name, offsets in self._offsets.items():
            np.cumsum(offsets, out=offsets)
            self._entries[name] = np.empty(offsets[-1], kinds[name])

    def put_lists(self, number: int) -> None:
        """The entries of a piece's lists, after :meth:`lay_out`."""
        index, lists = self._lists.pop(number)
        for name, out in self._entries.items():
            lists[name].put(index, self._order.place[number], self._offsets[name], out)

    def rows(self) -> Rows:
        """In the order of the batches."""
        lists = {name: Lists(entries, self._offsets[name]) for name, entries in self._entries.items()}
        ids = {f.name: lists[f.name] if f.is_list else self._ids[f.name] for f in self._schema.sparse}
        return Rows(self._dense, {"row": self._order.row, **self._fields}, ids)
