"""Rows of a file that no estimate can use, left out where that is asked for; otherwise reading refuses them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.columns import ESTIMATED, UNIFORM, TableColumns
from lightning_budget.data.files import File
from lightning_budget.data.outcomes import formula_cost
from lightning_budget.errors import InputError
from lightning_budget.trial.rows import Kind, Rows, screen_rows


def screened(file: File, columns: TableColumns, exclude: Sequence[Kind]) -> tuple[File, Rows]:
    """The file without the rows of some kinds, and the counts of every kind.

    Args:
        exclude: see :func:`~lightning_budget.trial.screen_rows`.

    Raises:
        InputError: if a row of another kind is there, or none is left.
    """
    treatment = file[columns.treatment]
    labels = treatment.labels()
    arms = {label: i for i, label in enumerate(columns.arms)}
    arm = labels.take([arms.get(name, -1) for name in labels.names], -1, np.int64)
    value = file[columns.value].numbers(finite=False)
    try:
        keep, rows = screen_rows(
            arm, value, _propensity(file, columns, arm), columns.arms, _cost(file, columns, arm), exclude
        )
    except InputError as error:
        found, allowed, fix = error.parts
        raise InputError(
            f"{treatment.file}: {found}", allowed, fix.replace("by exclude=", "by data.exclude=")
        ) from error
    return _filtered(file, keep), rows


def assigned(file: File, columns: TableColumns) -> File:
    """The rows of which arm, propensity, user and weight are there, whatever became of their outcomes."""
    labels = file[columns.treatment].labels()
    arm = labels.take([int(name in columns.arms) for name in labels.names], 0, np.bool_)
    p = _propensity(file, columns, np.zeros(len(arm), np.int64))
    keep = arm & (p > 0) & (p <= 1)
    for name in (columns.user, columns.weight):
        if name is not None:
            keep &= file[name].data.is_valid().to_numpy(zero_copy_only=False)
    return _filtered(file, keep)


def _filtered(file: File, keep: NDArray[np.bool_]) -> File:
    mask = pa.array(keep)
    return File(
        {
            name: Column(c.file, c.name, c.data.filter(mask), None if c.where is None else c.where.kept(keep))
            for name, c in file.items()
        }
    )


def _cost(file: File, columns: TableColumns, arm: NDArray[np.int64]) -> NDArray[np.float64] | None:
    if columns.cost is None and columns.cost_formula is None:
        return None
    observed = formula_cost(file, columns, arm) if columns.cost is None else file[columns.cost].numbers(finite=False)
    cost = observed.astype(np.float64)
    # What is certain beforehand is not missed.
    known = np.array([np.nan if c is None else c for c in (*(columns.cost_per_arm or ()), None)], np.float64)
    if columns.cost_per_arm is not None:
        cost = np.where(np.isnan(cost) & (arm >= 0), known[arm], cost)
    return cost


def _propensity(file: File, columns: TableColumns, arm: NDArray[np.int64]) -> NDArray[np.float64]:
    if columns.propensity in (UNIFORM, ESTIMATED):
        return np.full(len(arm), 1 / len(columns.arms))
    if isinstance(columns.propensity, str):
        return file[columns.propensity].numbers(finite=False).astype(np.float64)
    return np.array([*columns.propensity, 1.0])[arm]
