"""What the checks need of the rows, gathered chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.errors import InputError
from lightning_budget.published.description import Published, Rate


@dataclass
class Moments:
    """Number, sum and sum of squares of a column's entries in each arm, ``[K]``."""

    count: NDArray[np.float64]
    total: NDArray[np.float64]
    square: NDArray[np.float64]

    def of(self, arm: int | None) -> tuple[float, float, float]:
        """Number, mean and standard deviation in one arm, or in all."""
        pick = slice(None) if arm is None else slice(arm, arm + 1)
        n, s, q = (float(x[pick].sum()) for x in (self.count, self.total, self.square))
        mean = s / n if n else float("nan")
        return n, mean, max(q / n - mean**2, 0.0) ** 0.5 if n else float("nan")


@dataclass
class Tally:
    """Counts over the rows of a data set.

    Attributes:
        rows: read.
        arm_rows: ``[K]``, in each arm.
        moments: of the columns with published rates.
        broken: rows that contradict each pair of ``implies``.
        lacking: rows without an entry in a required column.
        extra: columns of the file that the description does not know.
    """

    data: Published
    rows: int = 0
    arm_rows: NDArray[np.int64] = field(init=False)
    moments: dict[str, Moments] = field(init=False)
    broken: dict[tuple[str, str], int] = field(init=False)
    lacking: int = 0
    extra: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        k = len(self.data.arms)
        self.arm_rows = np.zeros(k, np.int64)
        columns = dict.fromkeys(rate.column for rate in self.data.rates)
        self.moments = {name: Moments(*(np.zeros(k) for _ in range(3))) for name in columns}
        self.broken = dict.fromkeys(self.data.implies, 0)

    def add(self, table: pa.Table, place: str, first_row: int) -> None:
        """Count the rows of a derived table.

        Raises:
            InputError: for an arm that was not published, naming the row.
        """
        arm = self._arms(table, place, first_row)
        k = len(self.data.arms)
        self.rows += len(table)
        self.arm_rows += np.bincount(arm, minlength=k)
        for name, moments in self.moments.items():
            x = table[name].to_numpy().astype(np.float64)
            known = ~np.isnan(x)
            a, x = arm[known], x[known]
            moments.count += np.bincount(a, minlength=k)
            moments.total += np.bincount(a, x, k)
            moments.square += np.bincount(a, x * x, k)
        for a, b in self.broken:
            self.broken[a, b] += int(((table[a].to_numpy() == 1) & (table[b].to_numpy() != 1)).sum())

    def _arms(self, table: pa.Table, place: str, first_row: int) -> NDArray[np.int64]:
        column = table[self.data.treatment].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        names = column.dictionary.cast(pa.string()).to_pylist()
        labels = [arm.label for arm in self.data.arms]
        index = np.array([labels.index(n) if n in labels else -1 for n in names])
        arm = index[column.indices.to_numpy(zero_copy_only=False)]
        if (arm < 0).any():
            row = int((arm < 0).argmax())
            raise InputError(
                f"{place}: column {self.data.treatment!r} has the unknown arm {column[row].as_py()!r} "
                f"in row {first_row + row}",
                ", ".join(map(repr, labels)),
                "bring the file as published",
            )
        return arm

    def mean(self, rate: Rate) -> tuple[float, float, float]:
        """Number of rows, mean and standard deviation behind a rate."""
        labels = [arm.label for arm in self.data.arms]
        return self.moments[rate.column].of(None if rate.arm is None else labels.index(rate.arm))
