"""A randomized trial from a file, split by user: Parquet, csv and csv.gz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.data.columns import UNIFORM, TableColumns
from lightning_budget.data.dense import dense_of
from lightning_budget.data.files import File, read_columns
from lightning_budget.data.ids import id_columns, learn_feature
from lightning_budget.data.outcomes import cost_of, outcome_of, propensity_of, treatment_of
from lightning_budget.data.screening import screened
from lightning_budget.data.splits import feature_hash
from lightning_budget.errors import InputError
from lightning_budget.hashing import hashed_uniform
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable
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
    dense, treatment = dense_of(file, columns.dense), treatment_of(file, columns)
    # A row's own number stays its user's name, whatever was left out before it.
    user = np.flatnonzero(kept) if columns.user is None else file[columns.user].users()
    group = feature_hash(file, columns, dense) if columns.user is None else user
    part = np.searchsorted(np.cumsum(split)[:2], hashed_uniform(group, split_seed, "split"), side="right")
    if schema is None:
        schema = _learn_schema(file, columns, part == 0)
    else:
        _check_agrees(schema, columns, str(path))
    table = RCTTable(
        user=torch.from_numpy(user),
        dense=dense,
        ids=id_columns(file, schema.sparse),
        treatment=torch.from_numpy(treatment),
        value=torch.from_numpy(outcome_of(file[columns.value], columns.value_kind)),
        cost=torch.from_numpy(cost_of(file, columns, treatment)),
        propensity=torch.from_numpy(propensity_of(file, columns, treatment)),
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
