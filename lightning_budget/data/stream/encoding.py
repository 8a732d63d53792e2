"""Columns of a piece, and what their entries stand for, which is looked up while rows are put in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.compiled import usable
from lightning_budget.data.dense import dense_columns
from lightning_budget.data.files import File
from lightning_budget.data.ids import rows_of
from lightning_budget.data.lookup import lookup_of, raw_numbers, row_type
from lightning_budget.data.outcomes import cost_of, outcome_of, propensity_of, treatment_of, weight_of
from lightning_budget.data.trial_rows import check_agrees
from lightning_budget.schema import UNKNOWN, DataSchema, SparseFeature

Numbers = NDArray[Any]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Source:
    """Entries as they lie in a file: each stands for itself, or for ``table[entry − low]``, clipped to its ends."""

    entries: Numbers
    table: Ints | None = None
    low: int = 0

    def __post_init__(self) -> None:
        # To compiled code what can be written to is another type than what cannot.
        entries = self.entries.view()
        entries.flags.writeable = False
        object.__setattr__(self, "entries", entries)

    def put(self, rows: Ints, place: Ints, out: Numbers) -> None:
        """``out[place[k]]`` = what entry ``rows[k]`` stands for."""
        if not usable():
            out[place] = self._at(rows)
            return
        from lightning_budget.data.compiled.rows import put, put_known

        if self.table is None:
            put(self.entries, rows, place, out)
        else:
            put_known(self.entries, self.table, self.low, rows, place, out)

    def found(self) -> Numbers:
        """What every entry stands for."""
        if self.table is None:
            return self.entries
        if not usable():
            return self._at(np.arange(len(self.entries)))
        from lightning_budget.data.compiled.rows import known

        known(self.entries, self.table, self.low, out := np.empty(len(self.entries), self.table.dtype))
        out.flags.writeable = False
        return out

    def _at(self, index: Ints) -> Numbers:
        found = self.entries.take(index)
        return found if self.table is None else self.table.take(found.astype(np.int64) - self.low, mode="clip")


@dataclass(frozen=True)
class EntryRuns:
    """Entries of lists sorted by batch: ``starts[b] … stops[b]`` − 1 are those of batch b, one list after the other."""

    entries: Ints
    starts: Ints
    stops: Ints

    def of_batch(self, number: int) -> Ints:
        """A view."""
        return self.entries[self.starts[number] : self.stops[number]]


@dataclass(frozen=True)
class ListSource:
    """Lists as they lie in a file: entries ``offsets[i] … offsets[i + 1]`` − 1 of ``source`` are row i's."""

    source: Source
    offsets: Ints

    def put(self, rows: Ints, place: Ints, batch: Ints, batches: int, lengths: Ints) -> EntryRuns:
        """What the entries of lists ``rows[k]`` stand for, sorted by ``batch[k]``.

        Args:
            lengths: ``[n]``, written: at ``place[k]`` that of list ``rows[k]``.
        """
        offsets, total = self.offsets, np.zeros(batches, np.int64)
        if not usable():
            length = np.diff(offsets).take(rows)
            lengths[place] = length
            ends = np.cumsum(np.bincount(batch, length, batches).astype(np.int64))
            layout = np.argsort(place)
            length = length[layout]
            inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            found = self.source._at(np.repeat(offsets.take(rows[layout]), length) + inside)
            return EntryRuns(found, np.concatenate([[0], ends[:-1]]), ends)
        from lightning_budget.data.compiled.rows import CHUNK, put_entries, put_lengths

        put_lengths(offsets, rows, place, batch, lengths, total)
        # Room for whole chunks, unless batches are so small that it would outweigh the entries.
        spare = CHUNK if CHUNK * batches <= len(rows) else 0
        starts = np.cumsum(total + spare) - total - spare
        source = self.source.found()
        found = np.empty((total + spare).sum(), source.dtype)
        put_entries(source, offsets, rows, batch, starts.copy(), spare > 0, found)
        return EntryRuns(found, starts, starts + total)


@dataclass(frozen=True)
class Encoded:
    """N rows of a trial.

    Attributes:
        dense: D columns; outcomes: treatment, value, cost, propensity, and weight if there is one.
        ids, lists: of each id feature.
    """

    dense: tuple[Source, ...]
    outcomes: Mapping[str, Source]
    ids: Mapping[str, Source]
    lists: Mapping[str, ListSource]


def encode(file: File, columns: TableColumns, schema: DataSchema) -> Encoded:
    """What :func:`~lightning_budget.data.trial_rows.trial_rows` tells of the same rows.

    Raises:
        InputError: as it.
    """
    check_agrees(schema, columns, file[columns.treatment].file)
    treatment, weight = treatment_of(file, columns), weight_of(file, columns)
    outcomes = {
        "treatment": treatment.astype(row_type(len(columns.arms))),
        "value": outcome_of(file[columns.value], columns.value_kind),
        "cost": cost_of(file, columns, treatment),
        "propensity": propensity_of(file, columns, treatment, schema.shares),
    }
    if weight is not None:
        outcomes["weight"] = weight
    ids = {f.name: source_of(file[f.name], f) for f in schema.sparse if not f.is_list}
    lists = {f.name: _lists_of(file[f.name], f) for f in schema.sparse if f.is_list}
    dense = tuple(map(Source, dense_columns(file, schema)))
    return Encoded(dense, {name: Source(x) for name, x in outcomes.items()}, ids, lists)


def type_of(feature: SparseFeature) -> type[np.integer[Any]]:
    """Of table rows, or ids if the feature is managed."""
    return np.int64 if feature.ids == "managed" else row_type(feature.num_embeddings)


def source_of(column: Column, feature: SparseFeature) -> Source:
    """``[N]`` what :func:`~lightning_budget.data.ids.rows_of` tells.

    Raises:
        InputError: as it.
    """
    if feature.ids == "listed" and feature.vocabulary is not None:
        lookup, whole = lookup_of(feature.vocabulary), raw_numbers(column.data)
        if whole is None:
            labels = column.labels()
            table = np.array([UNKNOWN, *lookup.texts(labels.names)], type_of(feature))
            return Source(labels.codes.astype(np.int32), table, -1)
        if whole[1] is None and (found := lookup.table) is not None:
            x = whole[0]
            return Source(x if x.dtype == np.int32 else x.astype(np.int64, copy=False), *found)
    return Source(rows_of(column, feature).astype(type_of(feature), copy=False))


def _lists_of(column: Column, feature: SparseFeature) -> ListSource:
    entries, offsets = column.lists()
    return ListSource(source_of(entries, feature), offsets)
