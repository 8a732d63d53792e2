"""From labels to the rows of a vocabulary, looked up many times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.data.chunks import as_one
from lightning_budget.schema import UNKNOWN

WIDTH = 4
"""Whole numbers are looked up in a table where it has at most so many places a label."""


def row_type(rows: int) -> type[np.integer[Any]]:
    """The smallest whole numbers that can name rows of a table of so many, below 2³¹."""
    return np.uint8 if rows <= 1 << 8 else np.uint16 if rows <= 1 << 16 else np.int32


class Lookup:
    """Row ``i + 1`` of ``vocabulary[i]``, and ``UNKNOWN`` of everything else.

    Args:
        vocabulary: the labels.
    """

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        self.vocabulary = vocabulary

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {label: i + 1 for i, label in enumerate(self.vocabulary)}

    def texts(self, labels: Sequence[str]) -> list[int]:
        """The row of each label."""
        row_of = self._row_of
        return [row_of.get(label, UNKNOWN) for label in labels]

    @cached_property
    def _whole(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The labels that are whole numbers of 64 bits as numbers print them, ascending, and their rows."""
        found = [
            (int(label), i + 1)
            for i, label in enumerate(self.vocabulary)
            if len(label) <= 20 and label.removeprefix("-").isdecimal() and str(int(label)) == label
        ]
        found = sorted((number, row) for number, row in found if -(2**63) <= number < 2**63)
        return np.array([n for n, _ in found], np.int64), np.array([r for _, r in found], np.int64)

    @cached_property
    def table(self) -> tuple[NDArray[np.integer[Any]], int] | None:
        """The row of each whole number from the least label to the largest, between ``UNKNOWN`` twice.

        And the number of its first place. ``None`` where labels are too far apart.
        """
        numbers, rows = self._whole
        if not len(numbers) or int(numbers[-1]) - int(numbers[0]) >= WIDTH * len(numbers) + 1024:
            return None
        if numbers[0] == np.iinfo(np.int64).min:
            return None
        table = np.full(int(numbers[-1]) - int(numbers[0]) + 3, UNKNOWN, row_type(len(self.vocabulary) + 1))
        table[numbers - numbers[0] + 1] = rows
        return table, int(numbers[0]) - 1

    def wholes(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[n]`` the row of each whole number."""
        numbers, rows = self._whole
        if not len(numbers):
            return np.full(len(x), UNKNOWN, np.int64)
        if self.table is not None:
            table, low = self.table
            # What lies outside, or wraps around, is clipped to one of the ends.
            return table.take(x - np.int64(low), mode="clip").astype(np.int64)
        place = np.minimum(np.searchsorted(numbers, x), len(numbers) - 1)
        return np.where(numbers[place] == x, rows[place], UNKNOWN)


class _Same:
    """A tuple by its identity: comparing and hashing a vocabulary costs as much as looking up a batch."""

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        self.vocabulary = vocabulary

    def __hash__(self) -> int:
        return id(self.vocabulary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.vocabulary is self.vocabulary


def lookup_of(vocabulary: tuple[str, ...]) -> Lookup:
    """The lookup of a vocabulary, made once for the same tuple."""
    return _lookup_of(_Same(vocabulary))


@lru_cache(64)
def _lookup_of(same: _Same) -> Lookup:
    return Lookup(same.vocabulary)


def whole_numbers(data: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None] | None:
    """``[n]`` int64 and where null is (``None``: nowhere) of a column of integers; ``None`` for another column."""
    if (found := raw_numbers(data)) is None:
        return None
    x, null = found
    return x.astype(np.int64, copy=False), null


def raw_numbers(data: pa.ChunkedArray | pa.Array) -> tuple[NDArray[Any], NDArray[np.bool_] | None] | None:
    """As :func:`whole_numbers`, in the type of the column and, where nothing is null, in its memory."""
    kind = data.type
    if not pa.types.is_integer(kind) or pa.types.is_uint64(kind):
        return None
    null = None
    if data.null_count:
        null = data.is_null().to_numpy(zero_copy_only=False)
        data = data.fill_null(0)
    return as_one(data).to_numpy(zero_copy_only=False), null
