"""Columns of a publisher's file in the types of their description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightning_budget.errors import InputError
from lightning_budget.published.description import TYPES, Kind, Published


def allowed(kind: Kind) -> str:
    """Entries of a kind of column, in words."""
    return {"flag": "0 and 1", "label": "text", "double": "finite numbers"}.get(kind, "whole numbers")


def typed(data: Published, table: pa.Table, path: Path, place: str, first: int) -> pa.Table:
    """The columns of the description.

    Args:
        place: where in the file the rows are, as the end of a message; first: number of the first row.

    Raises:
        InputError: for entries that a column cannot have, naming file, column and row.
    """
    columns = {name: _column(data, table[name], name, path, place, first) for name in data.columns}
    return pa.table(columns)


def _column(data: Published, column: pa.ChunkedArray, name: str, path: Path, place: str, first: int) -> pa.Array:
    kind = data.columns[name]
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(whole.type):
        whole = whole.cast(whole.type.value_type)
    textual = pa.types.is_string(whole.type) or pa.types.is_large_string(whole.type)
    if textual != (kind == "label") or pa.types.is_nested(whole.type) or pa.types.is_temporal(whole.type):
        raise InputError(f"{path}: column {name!r} has type {whole.type}", allowed(kind), "bring it as published")
    values, bad = (whole, np.zeros(len(whole), bool)) if textual else _numbers(whole, kind)
    if name not in data.nullable:
        bad = bad | values.is_null().to_numpy(zero_copy_only=False)
    if bad.any():
        row = int(bad.argmax())
        entry = values[row].as_py()
        raise InputError(
            f"{path}: column {name!r} has {'no entry' if entry is None else f'{entry:g}'} in row {first + row}{place}",
            allowed(kind),
            "get the file anew, or mend the entry",
        )
    return values.cast(TYPES[kind])


def _numbers(whole: pa.Array, kind: Kind) -> tuple[pa.Array, NDArray[np.bool_]]:
    """``[N]`` as float64, and which of them are not of the kind; NaN is how some tools write null."""
    # Arrow casts no booleans to floats.
    x = (whole.cast(pa.int8()) if pa.types.is_boolean(whole.type) else whole).cast(pa.float64(), safe=False)
    numbers = x.to_numpy(zero_copy_only=False)
    nan = np.isnan(numbers)
    if kind == "double":
        bad = np.isinf(numbers)
    else:
        low, high = (0, 1) if kind == "flag" else (np.iinfo(kind).min, np.iinfo(kind).max)
        bad = ~nan & ((numbers != np.floor(numbers)) | (numbers < low) | (numbers > high))
    return pc.call_function("if_else", [pa.array(nan), pa.scalar(None, pa.float64()), x]), bad
