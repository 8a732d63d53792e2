"""Tables of a randomized trial, and of users to be scored, from and to files: Parquet, csv and csv.gz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.columns import UNIFORM, Column, TableColumns, learn_feature
from lightning_budget.errors import InputError
from lightning_budget.files import File, read_columns, write_parquet
from lightning_budget.hashing import hash_ids, hashed_uniform
from lightning_budget.schema import UNKNOWN, DataSchema, SparseFeature
from lightning_budget.screening import screened
from lightning_budget.table import IdList, RCTTable
from lightning_budget.trial.rows import Kind, Rows

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Trial:
    """A randomized trial as read from a file.

    Attributes:
        splits: ``train``, ``val`` and ``test``, rows in the order of the file.
        schema: names and vocabularies.
        rows: what was left out; ``None`` where nothing was asked to be.
    """

    splits: dict[str, RCTTable]
    schema: DataSchema
    rows: Rows | None


def read_trial(
    path: str | Path,
    columns: TableColumns,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
    schema: DataSchema | None = None,
    exclude: Sequence[Kind] = (),
) -> Trial:
    """Read a trial and split it by user.

    A user's rows all go to one split, a function of ``split_seed`` and the user; without a user column rows with equal
    features go together. Vocabularies are learned on the training split.

    Args:
        path: the file or folder.
        columns: what its columns mean.
        split: shares of the users for train, val and test; they sum to 1.
        split_seed: names the split.
        schema: encode ids by this schema (a checkpoint's) instead of learning vocabularies.
        exclude: kinds of unusable rows to leave out, and count, see :func:`~lightning_budget.trial.screen_rows`.

    Raises:
        InputError: for anything amiss, naming file and column; nothing is guessed or filled in, and no row is left out
            unasked.
    """
    if len(split) != 3 or not all(share >= 0 for share in split) or not abs(sum(split) - 1) <= 1e-6:
        raise InputError(
            f"split={list(split)}", "three shares ≥ 0 that sum to 1 (train, val, test)", "e.g. [0.6, 0.2, 0.2]"
        )
    file = read_columns(path, _roles(columns))
    kept = np.ones(len(file[columns.treatment].data), bool)
    rows = None
    if exclude:
        file, kept, rows = screened(file, columns, exclude)
    dense, treatment = _dense(file, columns.dense), _treatment(file, columns)
    # A row's own number stays its user's name, whatever was left out before it.
    user = np.flatnonzero(kept) if columns.user is None else file[columns.user].users()
    group = _feature_hash(file, columns, dense) if columns.user is None else user
    part = np.searchsorted(np.cumsum(split)[:2], hashed_uniform(group, split_seed, "split"), side="right")
    if schema is None:
        schema = _learn_schema(file, columns, part == 0)
    else:
        _check_agrees(schema, columns, str(path))
    table = RCTTable(
        user=torch.from_numpy(user),
        dense=dense,
        ids=_ids(file, schema.sparse),
        treatment=torch.from_numpy(treatment),
        value=torch.from_numpy(_outcome(file[columns.value], columns.value_kind)),
        cost=torch.from_numpy(_cost(file, columns, treatment)),
        propensity=torch.from_numpy(_propensity(file, columns, treatment)),
    )
    chosen = {name: torch.from_numpy(np.flatnonzero(part == i)) for i, name in enumerate(SPLITS)}
    return Trial({name: table.select(index) for name, index in chosen.items()}, schema, rows)


def read_rct(
    path: str | Path,
    columns: TableColumns,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
    schema: DataSchema | None = None,
) -> tuple[dict[str, RCTTable], DataSchema]:
    """Splits and schema of :func:`read_trial`, every row of the file used."""
    trial = read_trial(path, columns, split, split_seed, schema)
    return trial.splits, trial.schema


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
        | dict.fromkeys(schema.dense, "dense")
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
    dense = _dense(file, schema.dense)
    n = len(dense)
    return RCTTable(
        user=torch.from_numpy(file[user].users()),
        dense=dense,
        ids=_ids(file, schema.sparse),
        treatment=torch.zeros(n, dtype=torch.int64),
        value=torch.zeros(n),
        cost=torch.zeros(n),
        propensity=torch.ones(n),
    )


def write_users(table: RCTTable, schema: DataSchema, path: str | Path, user: str = "user_id") -> None:
    """Write the features of ``table`` so that :func:`read_users` gives them back; unknown ids become null.

    Args:
        table: N rows encoded by ``schema``.
        schema: names of the features.
        path: a .parquet file, replaced whole or not at all.
        user: name of the user column. If an id feature has that name it is the user column.

    Raises:
        InputError: if the file cannot be written.
    """
    out: dict[str, Any] = {user: pa.array(table.user.numpy())}
    for name, column in zip(schema.dense, table.dense.unbind(1), strict=True):
        out[name] = pa.array(column.numpy())
    for feature in schema.sparse:
        column = table.ids[feature.name]
        if isinstance(column, IdList):
            values = _decode(column.values, feature)
            out[feature.name] = pa.LargeListArray.from_arrays(pa.array(column.offsets.numpy()), values)
        elif feature.name != user:
            out[feature.name] = _decode(column, feature)
        elif feature.vocabulary is not None:
            # Users of another split than training's are in no vocabulary, and still need a name.
            names = pa.array(table.user.numpy()).cast(pa.large_string())
            out[user] = pc.call_function("coalesce", [_decode(column, feature), names])
    write_parquet(pa.table(out), path)


def _roles(c: TableColumns) -> list[tuple[str, str]]:
    propensity = [c.propensity] if isinstance(c.propensity, str) and c.propensity != UNIFORM else []
    singles = [
        ("treatment", c.treatment),
        ("value", c.value),
        ("cost", c.cost),
        ("user", c.user),
        *(("propensity", p) for p in propensity),
    ]
    many = [(role, name) for role in ("dense", "categorical", "lists") for name in getattr(c, role)]
    return [(name, role) for role, name in singles + many if name is not None]


def _dense(file: File, names: Sequence[str]) -> Tensor:
    n = len(next(iter(file.values())).data)
    dense = torch.empty(n, len(names))
    for i, name in enumerate(names):
        dense[:, i] = torch.from_numpy(file[name].numbers())
    return dense


def _treatment(file: File, columns: TableColumns) -> NDArray[np.int64]:
    column = file[columns.treatment]
    labels = column.labels()
    if missing := int((labels.codes < 0).sum()):
        raise column.error(
            f"has {missing} null or empty entries of {len(labels.codes)}", "an arm in every row", "drop those rows"
        )
    arms = {label: i for i, label in enumerate(columns.arms)}
    for name in labels.names:
        if name and name not in arms:
            close = get_close_matches(name, arms, n=1, cutoff=0.7)
            fix = f"spell {close[0]!r} as in the file" if close else "add it to arms, or drop its rows"
            raise column.error(f"has the unknown arm {name!r}", ", ".join(map(repr, arms)), fix)
    return labels.take([arms.get(n, -1) for n in labels.names], -1, np.int64)


def _outcome(column: Column, kind: str) -> NDArray[np.float32]:
    x = column.numbers()
    if kind == "binary" and (bad := int(((x != 0) & (x != 1)).sum())):
        raise column.error(
            f"has {bad} entries other than 0 and 1", "0 and 1 for a binary outcome", "set its kind to continuous"
        )
    return x


def _cost(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> NDArray[np.float32]:
    known = np.array(
        [np.nan if c is None else c for c in columns.cost_per_arm or (None,) * len(columns.arms)], np.float32
    )
    if columns.cost is None:
        return known[treatment]
    column = file[columns.cost]
    cost = _outcome(column, columns.cost_kind)
    if bad := int((cost < 0).sum()):
        raise column.error(f"has {bad} negative costs", "costs ≥ 0", "mend them, or count income as value instead")
    if (off := np.abs(cost - known[treatment]) > 1e-6 + 1e-6 * cost).any():
        i = int(off.argmax())
        arm = columns.arms[treatment[i]]
        raise column.error(
            f"has cost {cost[i]:g} for arm {arm!r}",
            f"{known[treatment[i]]:g} as in cost_per_arm",
            f"give null for {arm!r} in cost_per_arm",
        )
    return cost


def _propensity(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> NDArray[np.float32]:
    if columns.propensity == UNIFORM:
        return np.full(len(treatment), 1 / len(columns.arms), np.float32)
    if not isinstance(columns.propensity, str):
        return np.array(columns.propensity, np.float32)[treatment]
    column = file[columns.propensity]
    p = column.numbers()
    if (bad := (p <= 0) | (p > 1)).any():
        found = f"has {int(bad.sum())} propensities outside (0, 1], the first {p[bad.argmax()]:g}"
        raise column.error(found, "probabilities in (0, 1] of the arm given", "mend them, or drop those rows")
    return p


def _ids(file: File, features: Sequence[SparseFeature]) -> dict[str, Tensor | IdList]:
    ids: dict[str, Tensor | IdList] = {}
    for feature in features:
        if feature.is_list:
            entries, offsets = file[feature.name].lists()
            ids[feature.name] = IdList(torch.from_numpy(entries.rows(feature)), torch.from_numpy(offsets))
        else:
            ids[feature.name] = torch.from_numpy(file[feature.name].rows(feature))
    return ids


def _learn_schema(file: File, columns: TableColumns, training: NDArray[np.bool_]) -> DataSchema:
    features = [(name, False) for name in columns.categorical] + [(name, True) for name in columns.lists]
    return DataSchema(
        treatments=columns.arms,
        dense=columns.dense,
        sparse=tuple(learn_feature(file[name], training, is_list) for name, is_list in features),
        value_kind=columns.value_kind,
        cost_kind=columns.cost_kind,
        known_cost=columns.cost_per_arm or (),
        value_unit=columns.value_unit,
        cost_unit=columns.cost_unit,
    )


def _check_agrees(schema: DataSchema, columns: TableColumns, path: str) -> None:
    pairs = {
        "arms": (columns.arms, schema.treatments),
        "dense": (columns.dense, schema.dense),
        "categorical and lists": (columns.categorical + columns.lists, tuple(f.name for f in schema.sparse)),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise InputError(
                f"{path}: {what} {list(ours)}", f"{list(theirs)}, as in the schema given", f"set {what} as in training"
            )


def _feature_hash(file: File, columns: TableColumns, dense: Tensor) -> NDArray[np.int64]:
    """Equal for rows with equal features: such rows may be one user."""
    h = np.zeros(len(dense), np.uint64)
    # Adding 0.0 makes −0.0 and 0.0 one number.
    parts = [(x.numpy() + np.float32(0)).view(np.uint32).astype(np.uint64) for x in dense.T.contiguous()]
    parts += [file[name].labels().hashes() for name in columns.categorical]
    for name in columns.lists:
        entries, offsets = file[name].lists()
        hashes, lengths = entries.labels().hashes(), np.diff(offsets)
        position = np.arange(len(hashes)) - np.repeat(offsets[:-1], lengths)
        mixed = hash_ids((hashes ^ hash_ids(position, 0, "position")).view(np.int64), 0, "entry")
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        parts.append(total[offsets[1:]] - total[offsets[:-1]] + lengths.astype(np.uint64))
    for part in parts:
        h = hash_ids((h ^ part).view(np.int64), 0, "features")
    return h.view(np.int64)


def _decode(rows: Tensor, feature: SparseFeature) -> pa.Array:
    index, unknown = rows.numpy() - 1, (rows == UNKNOWN).numpy()
    if feature.vocabulary is None:
        return pa.array(index, mask=unknown)
    return pa.array(feature.vocabulary, pa.large_string()).take(pa.array(index, mask=unknown))
