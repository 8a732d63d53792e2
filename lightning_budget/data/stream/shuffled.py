"""Rows of a window in the order of the batches, so that a batch is a slice of every column.

Columns are put in order one at a time: a column lies in the cache where whole rows do not. Lists stay where they are,
and a row knows where its own begins::

    rows       4  0  7  2 | …          viewed   first  [9, 0, 21, 3 | …]   length  [2, 3, 0, 1 | …]
    position  [⋅  ⋅  ⋅  ⋅ | …]         entries of the window, in the order of the files
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.batch import KeyedJaggedTensor, RCTBatch
from lightning_budget.streaming.threads import for_each
from lightning_budget.table import IdList, RCTTable

Column = NDArray[Any]
Ints = NDArray[np.int64]
FIELDS = ("dense", "treatment", "value", "cost", "propensity", "weight")


class Room:
    """Memory that is written over again and again: new memory costs more than what is written into it."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Column:
        """What had this name before is gone."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size + size // 8, np.uint8)
        return self._held[name][:size].view(dtype).reshape(shape)

    def joined(self, name: str, parts: Sequence[Column]) -> Column:
        """Parts one after the other."""
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        return np.concatenate(parts, out=self.array(name, shape, parts[0].dtype))

    def taken(self, name: str, parts: Sequence[Column], order: Ints, thread: int = 0) -> Column:
        """Some rows of the parts; threads that do so at the same time have numbers of their own."""
        whole = self.joined(f"whole {thread}", parts)
        out = self.array(name, (len(order), *whole.shape[1:]), whole.dtype)
        # Other modes would take into memory of their own first.
        return whole.take(order, axis=0, out=out, mode="clip")


@dataclass(frozen=True)
class Lists:
    """A list of ids a row: ``entries[first : first + length]``; ``[N]`` each."""

    entries: Ints
    first: Ints
    length: Ints


@dataclass(frozen=True)
class ShuffledRows:
    """N rows in an order of their own.

    Attributes:
        fields: those of :class:`RCTBatch` but the ids, ``row`` among them.
        ids: id features in key order.
    """

    fields: dict[str, Column]
    ids: dict[str, Ints | Lists]

    def __len__(self) -> int:
        return len(self.fields["row"])

    @classmethod
    def of(
        cls, tables: list[RCTTable], positions: Sequence[Ints], order: Ints, room: Room, threads: int = 1
    ) -> ShuffledRows:
        """Some rows of several tables.

        Args:
            tables: with equal columns; emptied, and let go of column by column.
            positions: of their rows, what a batch tells as ``row``.
            order: ``[N]`` rows wanted, counted through all tables.
            room: where they are put; what it held before is gone.
            threads: columns put there together.
        """
        parts: dict[str, list[Column]] = {"row": list(positions)}
        for name in FIELDS:
            if getattr(tables[0], name) is not None:
                parts[name] = [getattr(t, name).numpy() for t in tables]
        ids = {name: [t.ids[name] for t in tables] for name in tables[0].ids}
        tables.clear()
        fields: dict[str, Column] = {}
        found: dict[str, Ints | Lists] = {}

        def take(thread: int) -> None:
            for name in names[thread::threads]:
                if name in ids:
                    found[name] = _ids_taken(name, ids.pop(name), order, room, thread)
                else:
                    fields[name] = room.taken(name, parts.pop(name), order, thread)

        names, keys = [*parts, *ids], tuple(ids)
        for_each(range(threads), take, threads)
        return cls(fields, {name: found[name] for name in keys})

    def part(self, start: int, stop: int) -> ShuffledRows:
        """Rows ``start … stop`` − 1, in memory of their own."""
        ids: dict[str, Ints | Lists] = {}
        for name, column in self.ids.items():
            if isinstance(column, Lists):
                length = column.length[start:stop].copy()
                entries = _entries(column.entries, column.first[start:stop], length)
                ids[name] = Lists(entries, np.cumsum(length) - length, length)
            else:
                ids[name] = column[start:stop].copy()
        return ShuffledRows({name: x[start:stop].copy() for name, x in self.fields.items()}, ids)

    def followed_by(self, other: ShuffledRows) -> ShuffledRows:
        """These rows, then those."""
        ids: dict[str, Ints | Lists] = {}
        for name, a in self.ids.items():
            b = other.ids[name]
            if isinstance(a, Lists) and isinstance(b, Lists):
                first = np.concatenate([a.first, b.first + len(a.entries)])
                entries, length = np.concatenate([a.entries, b.entries]), np.concatenate([a.length, b.length])
                ids[name] = Lists(entries, first, length)
            else:
                ids[name] = np.concatenate([a, b])  # type: ignore[list-item]  # of one kind
        return ShuffledRows({name: np.concatenate([x, other.fields[name]]) for name, x in self.fields.items()}, ids)

    def batch(self, start: int, stop: int) -> RCTBatch:
        """Collate rows ``start … stop`` − 1."""
        fields = {name: torch.from_numpy(x[start:stop].copy()) for name, x in self.fields.items()}
        return RCTBatch(**fields, sparse=self._sparse(start, stop) if self.ids else None)  # type: ignore[arg-type]

    def _sparse(self, start: int, stop: int) -> KeyedJaggedTensor:
        values, lengths = [], np.ones((len(self.ids), stop - start), np.int64)
        for i, column in enumerate(self.ids.values()):
            if isinstance(column, Lists):
                lengths[i] = column.length[start:stop]
                values.append(_entries(column.entries, column.first[start:stop], lengths[i]))
            else:
                values.append(column[start:stop])
        return KeyedJaggedTensor(
            list(self.ids), torch.from_numpy(np.concatenate(values)), lengths=torch.from_numpy(lengths.reshape(-1))
        )


def _ids_taken(name: str, parts: list[Any], order: Ints, room: Room, thread: int) -> Ints | Lists:
    if not isinstance(parts[0], IdList):
        return room.taken(f"ids {name}", [p.numpy() for p in parts], order, thread)
    before = np.cumsum([0, *(len(p.values) for p in parts)])
    first = [p.offsets[:-1].numpy() + n for p, n in zip(parts, before[:-1].tolist(), strict=True)]
    length = [p.offsets.diff().numpy() for p in parts]
    return Lists(
        room.joined(f"entries {name}", [p.values.numpy() for p in parts]),
        room.taken(f"first {name}", first, order, thread),
        room.taken(f"length {name}", length, order, thread),
    )


def _entries(entries: Ints, first: Ints, length: Ints) -> Ints:
    """The entries of some rows' lists, one row's after the other's."""
    ends = np.cumsum(length)
    index = np.repeat(first - (ends - length), length)
    index += np.arange(len(index))
    return entries.take(index)
