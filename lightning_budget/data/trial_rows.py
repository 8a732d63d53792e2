"""Rows of a trial, of a whole file or of one record batch, as a table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.dense import dense_names, dense_of
from lightning_budget.data.files import File
from lightning_budget.data.ids import id_columns
from lightning_budget.data.outcomes import cost_of, outcome_of, propensity_of, treatment_of, weight_of
from lightning_budget.data.where import FROM_0, Where
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable


def file_of_rows(rows: pa.RecordBatch | pa.Table, name: str, where: Where | None = None) -> File:
    """Rows that are in memory already, as columns of the file ``name``.

    Args:
        where: their numbers in the file, for errors and for trials without a user column; ``None``: from 0.
    """
    return File({c: Column(name, c, rows.column(c), where or FROM_0) for c in rows.schema.names})


def trial_rows(file: File, columns: TableColumns, schema: DataSchema) -> RCTTable:
    """N rows of a trial as a table; a function of each row alone.

    Args:
        file: the columns of :meth:`TableColumns.roles`.
        columns: what they mean.
        schema: names, vocabularies and whatever else the training split has taught.

    Raises:
        InputError: for anything amiss in a row, naming file and column; if the schema was learned with other columns.
    """
    treated = file[columns.treatment]
    check_agrees(schema, columns, treated.file)
    dense = dense_of(file, schema)
    treatment = treatment_of(file, columns)
    weight = weight_of(file, columns)
    # A row's own number is its user's name, whatever was left out before it.
    own = (treated.where or FROM_0).of_rows(len(treatment))
    user = own if columns.user is None else file[columns.user].users()
    return RCTTable(
        user=_tensor(user),
        dense=dense,
        ids=id_columns(file, schema.sparse),
        treatment=torch.from_numpy(treatment),
        value=_tensor(outcome_of(file[columns.value], columns.value_kind)),
        cost=_tensor(cost_of(file, columns, treatment)),
        propensity=_tensor(propensity_of(file, columns, treatment, schema.shares)),
        weight=None if weight is None else _tensor(weight),
    )


def _tensor(x: NDArray[Any]) -> torch.Tensor:
    """In memory that can be written to."""
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def check_agrees(schema: DataSchema, columns: TableColumns, path: str) -> None:
    """Refuse a schema that was learned with other arms, features or filled columns."""
    filled = tuple(sorted((f.column, f.flag) for f in schema.nulls))
    pairs = {
        "arms": (columns.arms, schema.treatments),
        "dense": (dense_names(columns), schema.dense),
        "categorical and lists": (columns.categorical + columns.lists, tuple(f.name for f in schema.sparse)),
        "hashed and managed": (
            tuple(sorted((*columns.hashed.items(), *columns.managed.items()))),
            tuple(sorted((f.name, f.num_embeddings) for f in schema.sparse if f.ids != "listed")),
        ),
        "nulls (column, flag)": (tuple(sorted((c, c in columns.null_flags) for c in columns.nulls)), filled),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise InputError(
                f"{path}: {what} {list(ours)}", f"{list(theirs)}, as in the schema given", f"set {what} as in training"
            )
