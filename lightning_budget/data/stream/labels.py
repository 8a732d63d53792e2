"""The different labels of a column, collected piece by piece; whole numbers as numbers, a tenth of the size of text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.ids import labels_in
from lightning_budget.data.lookup import whole_numbers

NEAR = 8
"""Numbers are ticked off in a table of at most so many places a number, several times as fast as sorting them."""

Found = set[str] | NDArray[np.int64]


def found_in(column: Column, rows: NDArray[np.bool_], is_list: bool) -> Found:
    """The different labels in ``rows`` (``[N]``).

    Raises:
        InputError: as :meth:`Column.labels`.
    """
    entries = column
    held = rows
    if is_list:
        entries, offsets = column.lists()
        held = np.repeat(rows, np.diff(offsets))
    if (whole := whole_numbers(entries.data)) is None:
        return set(labels_in(column, rows, is_list))
    x, null = whole
    return _distinct(x[held if null is None else held & ~null])


def _distinct(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending."""
    if not len(x):
        return x
    low, high = int(x.min()), int(x.max())
    if high - low >= NEAR * len(x):
        return np.unique(x)
    seen = np.zeros(high - low + 1, bool)
    seen[x - low] = True
    return np.flatnonzero(seen) + low


class LabelSet:
    """Different labels, text and numbers; the number 17 and the text "17" are one."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._wholes = np.empty(0, np.int64)
        self._pending: list[NDArray[np.int64]] = []

    def add(self, found: Found) -> None:
        """Take in more."""
        if isinstance(found, set):
            self._texts |= found
            return
        self._pending.append(found)
        # Merging costs as much as there are labels: not before as many have come again.
        if sum(map(len, self._pending)) > len(self._wholes):
            self._merge()

    def merge(self, other: LabelSet) -> None:
        """Take in what another one has."""
        self._texts |= other._texts
        self._pending += [other._wholes, *other._pending]
        self._merge()

    def __len__(self) -> int:
        """At least so many labels."""
        return max(len(self._texts), len(self._wholes))

    def labels(self) -> set[str]:
        """All of them as text."""
        self._merge()
        return self._texts | set(map(str, self._wholes.tolist()))

    def _merge(self) -> None:
        if self._pending:
            self._wholes = np.unique(np.concatenate([self._wholes, *self._pending]))
            self._pending = []
