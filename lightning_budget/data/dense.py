"""Dense features of a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.data.column import Column
from lightning_budget.data.columns import MEAN, TableColumns
from lightning_budget.data.files import File
from lightning_budget.learned import NullFill
from lightning_budget.schema import DataSchema


def dense_of(file: File, schema: DataSchema) -> Tensor:
    """``[N, D]`` float32, nulls and NaN filled in as the schema says.

    Raises:
        InputError: for entries that are no finite numbers, but the nulls that are filled in.
    """
    n = len(next(iter(file.values())).data)
    dense = torch.empty(n, len(schema.dense))
    for i, values in enumerate(dense_columns(file, schema)):
        dense.numpy()[:, i] = values
    return dense


def dense_columns(file: File, schema: DataSchema) -> Iterator[NDArray[np.float32]]:
    """The columns of :func:`dense_of`, which may be the file's own memory.

    Raises:
        InputError: as it.
    """
    fills = {fill.column: fill for fill in schema.nulls}
    flags = {fill.flag_name: fill.column for fill in schema.nulls if fill.flag}
    for name in schema.dense:
        if name in flags:
            yield np.isnan(file[flags[name]].numbers(finite=False)).astype(np.float32)
        elif name in fills:
            values = numbers_or_null(file[name])
            yield np.where(np.isnan(values), np.float32(fills[name].value), values)
        else:
            yield file[name].numbers()


def numbers_or_null(column: Column) -> NDArray[np.float32]:
    """``[N]`` numbers; null is NaN.

    Raises:
        InputError: for infinite entries.
    """
    x = column.numbers(finite=False)
    if (bad := np.isinf(x)).any():
        found = f"has {int(bad.sum())} infinite entries of {len(x)}{column.first(bad)}"
        raise column.error(found, "finite numbers, or null", "drop those rows, or set them to null")
    return x


def learn_fills(
    file: File, columns: TableColumns, training: NDArray[np.bool_], weight: NDArray[np.float32] | None = None
) -> tuple[NullFill, ...]:
    """What stands for null in each column of ``columns.nulls``.

    Args:
        training: ``[N]`` the rows whose means are taken.
        weight: ``[N]`` sample weights.

    Raises:
        InputError: for infinite entries, and where a mean is asked for and no training row has a number.
    """
    w = training.astype(np.float64) if weight is None else np.where(training, weight, 0.0).astype(np.float64)
    return tuple(_fills(file, columns, w))


def _fills(file: File, columns: TableColumns, weight: NDArray[np.float64]) -> Iterator[NullFill]:
    for name, given in columns.nulls.items():
        value = given
        if given == MEAN:
            x = numbers_or_null(file[name]).astype(np.float64)
            w = np.where(np.isnan(x), 0.0, weight)
            if not w.sum() > 0:
                raise file[name].error("has no number in the training split", "at least one", "remove it from dense")
            value = float((np.nan_to_num(x) * w).sum() / w.sum())
        yield NullFill(name, float(value), name in columns.null_flags)


def dense_names(columns: TableColumns) -> tuple[str, ...]:
    """Names of the dense features: the columns, then the flags of null."""
    return (*columns.dense, *(NullFill(c, 0.0, True).flag_name for c in columns.null_flags))
