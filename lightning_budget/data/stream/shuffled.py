"""Rows of a window in the order of the batches, piece by piece, so that a batch is a slice of every piece.

Rows are put in order within their piece, whose columns lie in the cache where a window's do not. A batch holds the rows
that the order of the window gives it, those of a piece side by side::

    order of the window   b2 a0 a3 c1 | b0 c0 a1 b1 | …       batches of four rows, of pieces a, b and c
    piece a               0 3 1 …                             batch 0 takes two rows of it, batch 1 one
    piece b               2 0 1 …                             one, two
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.allocation import compiled
from lightning_budget.batch import KeyedJaggedTensor, RCTBatch
from lightning_budget.table import IdList, RCTTable

Column = NDArray[Any]
Ints = NDArray[np.int64]
FIELDS = ("dense", "treatment", "value", "cost", "propensity", "weight")

GRAIN = 1 << 12
"""Rows between places at which it is known how many come from each piece."""


@dataclass(frozen=True)
class Lists:
    """A list of ids a row: ``entries[offsets[i] : offsets[i + 1]]``; offsets ``[n + 1]`` need not begin at 0."""

    entries: Ints
    offsets: Ints

    def in_order(self, rows: Ints) -> Lists:
        """Of some rows, in memory of their own."""
        length = np.diff(self.offsets).take(rows)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
        if compiled.usable(torch.from_numpy(length)):
            from lightning_budget.data.compiled.lists import entries_in_order

            entries = np.empty(offsets[-1], np.int64)
            entries_in_order(self.entries, self.offsets, rows, entries)
        else:
            index = np.repeat(self.offsets[:-1].take(rows) - offsets[:-1], length)
            index += np.arange(len(index))
            entries = self.entries.take(index)
        return Lists(entries, offsets)

    def cut(self, start: int, stop: int) -> Lists:
        """Of rows ``start … stop`` − 1; a view."""
        return Lists(self.entries, self.offsets[start : stop + 1])


@dataclass(frozen=True)
class Rows:
    """n rows as columns.

    Attributes:
        fields: those of :class:`RCTBatch` but the ids, ``row`` among them.
        ids: id features in key order.
    """

    fields: dict[str, Column]
    ids: dict[str, Ints | Lists]

    def __len__(self) -> int:
        return len(self.fields["row"])

    @classmethod
    def of(cls, table: RCTTable, position: Ints, rows: Ints) -> Rows:
        """Some rows of a table, in memory of their own.

        Args:
            position: ``[n]``, what a batch tells as ``row``; rows: ``[n]``, which they are in the table.
        """
        fields = {"row": position}
        for name in FIELDS:
            if (column := getattr(table, name)) is not None:
                fields[name] = column.numpy().take(rows, axis=0)
        ids: dict[str, Ints | Lists] = {}
        for name, column in table.ids.items():
            if isinstance(column, IdList):
                ids[name] = Lists(column.values.numpy(), column.offsets.numpy()).in_order(rows)
            else:
                ids[name] = column.numpy().take(rows)
        return cls(fields, ids)

    def cut(self, start: int, stop: int) -> Rows:
        """Rows ``start … stop`` − 1; a view."""
        ids = {k: x.cut(start, stop) if isinstance(x, Lists) else x[start:stop] for k, x in self.ids.items()}
        return Rows({name: x[start:stop] for name, x in self.fields.items()}, ids)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """One part after the other, in memory of their own."""
        fields = {name: np.concatenate([p.fields[name] for p in parts]) for name in parts[0].fields}
        ids: dict[str, Ints | Lists] = {}
        for name, first in parts[0].ids.items():
            if isinstance(first, Lists):
                lists: list[Any] = [p.ids[name] for p in parts]
                entries = np.concatenate([x.entries[x.offsets[0] : x.offsets[-1]] for x in lists])
                length = np.concatenate([np.diff(x.offsets) for x in lists])
                ids[name] = Lists(entries, np.concatenate([np.zeros(1, np.int64), np.cumsum(length)]))
            else:
                ids[name] = np.concatenate([p.ids[name] for p in parts])  # type: ignore[misc]  # of one kind
        return cls(fields, ids)

    def batch(self) -> RCTBatch:
        """All rows, as a batch that shares their memory."""
        sparse = None
        if self.ids:
            values, lengths = [], np.ones((len(self.ids), len(self)), np.int64)
            for i, column in enumerate(self.ids.values()):
                if isinstance(column, Lists):
                    lengths[i] = np.diff(column.offsets)
                    values.append(column.entries[column.offsets[0] : column.offsets[-1]])
                else:
                    values.append(column)
            sparse = KeyedJaggedTensor(
                list(self.ids), torch.from_numpy(np.concatenate(values)), lengths=torch.from_numpy(lengths.reshape(-1))
            )
        fields = {name: torch.from_numpy(x) for name, x in self.fields.items()}
        return RCTBatch(**fields, sparse=sparse)  # type: ignore[arg-type]


class WindowOrder:
    """A permutation of a window's rows, taken apart into one for each piece.

    Args:
        order: ``[N]``, of rows counted through all pieces.
        sizes: rows of each of the P pieces.

    Attributes:
        within: for each piece the order of its own rows.
    """

    def __init__(self, order: Ints, sizes: Sequence[int]) -> None:
        first = np.cumsum([0, *sizes])
        kind = np.uint8 if len(sizes) <= 1 << 8 else np.uint16 if len(sizes) <= 1 << 16 else np.int64
        self._piece = np.repeat(np.arange(len(sizes), dtype=kind), sizes).take(order)
        # A stable sort of small integers is a radix sort.
        grouped = order.take(np.argsort(self._piece, kind="stable"))
        self.within = [grouped[a : a + n] - a for a, n in zip(first[:-1].tolist(), sizes, strict=True)]
        counts = [self._count(self._piece[i : i + GRAIN]) for i in range(0, len(order), GRAIN)]
        self._taken = np.cumsum([np.zeros(len(sizes), np.int64), *counts], axis=0)

    def taken(self, place: int) -> list[int]:
        """``[P]``: how many of the first ``place`` rows are of each piece."""
        grain = place // GRAIN
        return (self._taken[grain] + self._count(self._piece[grain * GRAIN : place])).tolist()

    def _count(self, piece: Column) -> Ints:
        return np.bincount(piece, minlength=len(self.within)).astype(np.int64)


@dataclass(frozen=True)
class ShuffledRows:
    """The rows of a window: those of each piece in its own order, and the order of all."""

    pieces: Sequence[Rows]
    order: WindowOrder

    def part(self, start: int, stop: int) -> Rows:
        """Rows ``start … stop`` − 1 of the window's order, those of a piece together, in memory of their own."""
        places = zip(self.pieces, self.order.taken(start), self.order.taken(stop), strict=True)
        return Rows.joined([rows.cut(a, b) for rows, a, b in places if b > a])
