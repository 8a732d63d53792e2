"""Which file, row group and column of a damaged Parquet data set cannot be read; looked for once reading has failed."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet

BROKEN = (OSError, pa.ArrowException, UnicodeError, OverflowError, MemoryError)
"""What Arrow raises over damaged files."""


def first_damage(files: Sequence[str], columns: Sequence[str]) -> tuple[str, str]:
    """Place, as ``a.parquet, row group 3, column 'spend'``, and message of the first failure; else empty."""
    for path in files:
        place = path
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                there = set(file.schema_arrow.names)
                for group in range(file.metadata.num_row_groups):
                    for column in dict.fromkeys(c for c in columns if c in there):
                        place = f"{path}, row group {group}, column {column!r}"
                        file.read_row_group(group, columns=[column], use_threads=False).validate(full=True)
        except BROKEN as e:
            return place, reason(e)
    return "", ""


def reason(error: BaseException) -> str:
    """The first line of what Arrow says."""
    return (str(error) or type(error).__name__).splitlines()[0]
