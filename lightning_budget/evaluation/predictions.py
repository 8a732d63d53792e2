"""Predictions of any tool from Parquet files, joined to the rows of a trial."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.data.column import Column
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.streaming.batches import read_piece
from lightning_budget.streaming.predictions import PredictionColumns, prediction_columns
from lightning_budget.streaming.source import Source, open_source
from lightning_budget.table import RCTTable


@dataclass(frozen=True)
class PredictionFormat:
    """Which columns hold what.

    Attributes:
        user: column that names the user as the trial does.
        value, cost: names of K columns each, control first, or of one list column each; ``None``: ``value_0,
            value_1, …`` and ``cost_0, cost_1, …``.
        row_order: row i is the prediction for row i of the trial; ``user`` is not read.
    """

    user: str = "user_id"
    value: str | Sequence[str] | None = None
    cost: str | Sequence[str] | None = None
    row_order: bool = False


def read_predictions(
    path: str | os.PathLike[str], table: RCTTable, schema: DataSchema, format: PredictionFormat
) -> ResponsePrediction:
    """Read a Parquet file, or a folder of them, of predictions for the users (or rows) of a trial.

    A user's one prediction goes to all rows of that user; users that the table does not have are passed over.

    Args:
        path: file or folder.
        table: N rows to be predicted.
        schema: names of its K arms.
        format: of the file.

    Returns:
        ``[N, K]`` each, float32 where all columns are, else float64.

    Raises:
        InputError: if the file cannot be read, lacks a column, has another number of arms or entries that are not
            finite, users of the table have no row or more than one, or in row order the numbers of rows differ.
    """
    source = open_source(Path(path))
    columns = _columns(source, format)
    _check(source, columns, table, schema, format)
    value, cost, ids = _read(source, columns, format)
    if not format.row_order:
        index = _rows_of_users(source.root, ids, format.user, table.user)
        value, cost = value[index], cost[index]
    for name, matrix in (("value", value), ("cost", cost)):
        if bad := int((~torch.isfinite(matrix)).sum()):
            raise InputError(
                f"{source.root}: {bad:,} entries of predicted {name} are null or not finite",
                "finite numbers",
                "predict every treatment for every user",
            )
    return ResponsePrediction(value, cost)


def _columns(source: Source, format: PredictionFormat) -> PredictionColumns:
    user = format.user
    if format.row_order:
        # Row order needs no user column: one that no file has stands in for it, and is not read.
        user = "row number"
        source = replace(source, schema=source.schema.append(pa.field(user, pa.int64())))
    return prediction_columns(source, user, format.value, format.cost, None)


def _check(
    source: Source, columns: PredictionColumns, table: RCTTable, schema: DataSchema, format: PredictionFormat
) -> None:
    if columns.arms != schema.num_treatments:
        raise InputError(
            f"{source.root}: predictions for {columns.arms} treatments",
            f"{schema.num_treatments}: {', '.join(schema.treatments)}",
            "write one value and one cost column per arm of the trial, control first",
        )
    if format.row_order and source.rows != len(table):
        raise InputError(
            f"{source.root}: {source.rows:,} rows of predictions for {len(table):,} rows of the split",
            "equally many, in the order of the data",
            "predict the rows of this split, or evaluate the whole data with split=all",
        )


def _read(
    source: Source, columns: PredictionColumns, format: PredictionFormat
) -> tuple[Tensor, Tensor, pa.ChunkedArray]:
    value, cost = (torch.empty(source.rows, columns.arms, dtype=columns.dtype) for _ in range(2))
    ids: list[pa.Array] = []
    wanted = [*columns.value, *columns.cost] if format.row_order else columns.columns
    start = 0
    for piece in source.pieces:
        for batch in read_piece(source, piece, list(dict.fromkeys(wanted))):
            rows = slice(start, start + batch.num_rows)
            # Treatments come first there.
            value[rows], cost[rows] = (x.T for x in columns(batch, source.file_of(piece).path))
            if not format.row_order:
                ids.append(batch.column(columns.ids))
            start += batch.num_rows
    return value, cost, pa.chunked_array(ids, ids[0].type if ids else pa.int64())


def _rows_of_users(file: str, ids: pa.ChunkedArray, name: str, user: Tensor) -> NDArray[np.int64]:
    """The one row of predictions of the user of each of N rows."""
    predicted = Column(file, name, ids).users()
    order = np.argsort(predicted, kind="stable")
    users, place = np.unique(user.numpy(), return_inverse=True)
    first, last = (np.searchsorted(predicted[order], users, side=side) for side in ("left", "right"))
    rows = last - first
    if missing := int((rows == 0).sum()):
        raise InputError(
            f"{file}: no prediction for {missing:,} of {len(users):,} users of the split",
            "one row for every user of the split",
            f"check that {name!r} and data.user name users alike, or give split=…, whose users are predicted",
        )
    if several := int((rows > 1).sum()):
        raise InputError(
            f"{file}: {several:,} of {len(users):,} users of the split have up to {int(rows.max()):,} rows",
            "one row for every user of the split",
            "keep one of them, or give row_order=true where each row of the trial has its own prediction",
        )
    return order[first][place]
