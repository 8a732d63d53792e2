"""Where in a file or folder a row stands, for messages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from lightning_budget.data.damage import BROKEN


@dataclass(frozen=True)
class Where:
    """Numbers of rows that are at hand, from 0.

    Attributes:
        first: number of the first row.
        numbers: ``[N]`` number of every row, where rows were left out.
        parts: Parquet files whose rows are counted through, in their order; their row groups are named.
    """

    first: int = 0
    numbers: NDArray[np.int64] | None = None
    parts: tuple[str, ...] = ()

    def kept(self, mask: NDArray[np.bool_]) -> Where:
        """Of the rows of a mask ``[N]``."""
        numbers = np.arange(len(mask)) + self.first if self.numbers is None else self.numbers
        return replace(self, numbers=numbers[mask])

    def of_rows(self, rows: int) -> NDArray[np.int64]:
        """``[N]`` the numbers of ``rows`` rows."""
        return np.arange(rows) + self.first if self.numbers is None else self.numbers

    def name(self, position: int) -> str:
        """``row 17``; with parts ``row 17 of day=2/a.parquet, row group 0``."""
        number = self.first + position if self.numbers is None else int(self.numbers[position])
        left = number
        for part in self.parts:
            try:
                groups = _group_rows(part)
            except BROKEN:
                break
            if left < sum(groups):
                ends = np.cumsum(groups)
                group = int(np.searchsorted(ends, left, side="right"))
                of = f" of {part}" if len(self.parts) > 1 else ""
                return f"row {left}{of}, row group {group}"
            left -= sum(groups)
        return f"row {number}"


FROM_0 = Where()


def _group_rows(path: str) -> list[int]:
    with pyarrow.parquet.ParquetFile(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
