"""Users to be scored, from and to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from lightning_budget.data.column import Column
from lightning_budget.data.dense import dense_of
from lightning_budget.data.files import File, read_columns, write_parquet
from lightning_budget.data.ids import decode, id_columns
from lightning_budget.schema import DataSchema
from lightning_budget.table import IdList, RCTTable


def read_users(path: str | Path, schema: DataSchema, user: str = "user_id") -> tuple[RCTTable, pa.Array]:
    """Read users to be scored: the features of ``schema`` and a column naming the user.

    Returns:
        A table with the treatment and outcomes all 0 and propensity 1, and the user column as it stands in the file.

    Raises:
        InputError: for anything amiss, naming file and column.
    """
    file = read_columns(path, list(user_roles(schema, user).items()))
    return _users(file, schema, user), file[user].data.combine_chunks()


def user_roles(schema: DataSchema, user: str = "user_id") -> dict[str, str]:
    """Columns that users to be scored need, each with the part it plays, see :func:`read_columns`."""
    return (
        {user: "user"}
        | dict.fromkeys(schema.dense_columns, "dense")
        | {f.name: "lists" if f.is_list else "categorical" for f in schema.sparse}
    )


def users_of_rows(rows: pa.RecordBatch, name: str, schema: DataSchema, user: str = "user_id") -> RCTTable:
    """As :func:`read_users`, of rows that are in memory already.

    Args:
        rows: with all columns of :func:`user_roles`.
        name: of the file they are from, for errors.

    Raises:
        InputError: for anything amiss, naming file and column.
    """
    file = File({c: Column(name, c, rows.column(c)) for c in user_roles(schema, user)})
    return _users(file, schema, user)


def _users(file: File, schema: DataSchema, user: str) -> RCTTable:
    dense = dense_of(file, schema)
    n = len(dense)
    return RCTTable(
        user=torch.from_numpy(file[user].users()),
        dense=dense,
        ids=id_columns(file, schema.sparse),
        treatment=torch.zeros(n, dtype=torch.int64),
        value=torch.zeros(n),
        cost=torch.zeros(n),
        propensity=torch.ones(n),
    )


def write_users(table: RCTTable, schema: DataSchema, path: str | Path, user: str = "user_id") -> None:
    """Write the features of ``table`` so that :func:`read_users` gives them back; unknown ids become null.

    Hashed and managed labels are lost, and written as numbers that have the same row or id.

    Args:
        table: N rows encoded by ``schema``.
        schema: names of the features.
        path: a .parquet file, replaced whole or not at all.
        user: name of the user column. If an id feature has that name it is the user column.

    Raises:
        InputError: if the file cannot be written.
    """
    out: dict[str, Any] = {user: pa.array(table.user.numpy())}
    dense = dict(zip(schema.dense, table.dense.unbind(1), strict=True))
    flags = {fill.column: dense[fill.flag_name].numpy() == 1 for fill in schema.nulls if fill.flag}
    for name in schema.dense_columns:
        out[name] = pa.array(dense[name].numpy(), mask=flags.get(name))
    for feature in schema.sparse:
        column = table.ids[feature.name]
        if isinstance(column, IdList):
            values = decode(column.values, feature)
            out[feature.name] = pa.LargeListArray.from_arrays(pa.array(column.offsets.numpy()), values)
        elif feature.name != user:
            out[feature.name] = decode(column, feature)
        elif feature.ids != "listed":
            out[user] = pc.call_function("coalesce", [decode(column, feature, table.user.numpy()), out[user]])
        elif feature.vocabulary is not None:
            # Users of another split than training's are in no vocabulary, and still need a name.
            names = pa.array(table.user.numpy()).cast(pa.large_string())
            out[user] = pc.call_function("coalesce", [decode(column, feature), names])
    write_parquet(pa.table(out), path)
