"""Rows of a file that no estimate can use, left out where that is asked for; otherwise reading refuses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.columns import ESTIMATED, UNIFORM, TableColumns
from lightning_budget.data.files import File
from lightning_budget.data.outcomes import formula_cost
from lightning_budget.errors import InputError
from lightning_budget.trial.distributions import chi_square_p
from lightning_budget.trial.rows import Kind, RowKind, Rows, screen_rows


def screened(file: File, columns: TableColumns, exclude: Sequence[Kind]) -> tuple[File, Rows]:
    """The file without the rows of some kinds, and the counts of every kind.

    Args:
        exclude: see :func:`~lightning_budget.trial.screen_rows`.

    Raises:
        InputError: if a row of another kind is there, or none is left.
    """
    keep, rows = _screen(file, columns, exclude, _arms(file, columns))
    return _filtered(file, keep), rows


@dataclass(frozen=True)
class PartScreened:
    """What :func:`screened` counts in a part of a file, K arms.

    Attributes:
        rows: of the part and one usable row more, as a part may have none; first: number of the part's first row.
        arms, lost: ``[K]`` rows given each arm, and those of them left out.
    """

    rows: Rows
    first: int
    arms: NDArray[np.int64]
    lost: NDArray[np.int64]


def screened_part(file: File, columns: TableColumns, exclude: Sequence[Kind]) -> tuple[File, PartScreened]:
    """A part of a file without the rows of some kinds, of which none may be left, and what was counted.

    Raises:
        InputError: if a row of another kind is there.
    """
    arm, k = _arms(file, columns), len(columns.arms)
    keep, rows = _screen(file, columns, exclude, arm, 1)
    known, first = arm >= 0, file[columns.treatment].where
    counts = (np.bincount(arm[known & which], minlength=k) for which in (True, ~keep))
    return _filtered(file, keep), PartScreened(rows, 0 if first is None else first.first, *counts)


def of_parts(parts: Sequence[PartScreened], name: str) -> Rows:
    """The counts of a whole file from those of its parts, in their order.

    Raises:
        InputError: if no row is left; ``name`` is the file's.
    """
    rows = [p.rows for p in parts]
    total, kept, excluded = sum(r.total - 1 for r in rows), sum(r.kept - 1 for r in rows), sum(r.excluded for r in rows)
    if not kept:
        raise InputError(
            f"{name}: no row is left of {total:,}",
            "at least 1 usable row",
            "check what the columns mean, or exclude fewer kinds",
        )
    kinds = []
    for i, kind in enumerate(rows[0].kinds):
        found = [(p, p.rows.kinds[i]) for p in parts]
        first = next((p.first + k.first_row for p, k in found if k.first_row is not None), None)
        by_arm = {arm: sum(k.by_arm[arm] for _, k in found) for arm in kind.by_arm}
        kinds.append(RowKind(kind.kind, sum(k.count for _, k in found), first, by_arm))
    arms, lost = (np.sum([getattr(p, name) for p in parts], axis=0) for name in ("arms", "lost"))
    return Rows(total, kept, tuple(kinds), rows[0].exclude, excluded, _attrition(arms, lost))


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


def _arms(file: File, columns: TableColumns) -> NDArray[np.int64]:
    """``[N]`` positions in ``columns.arms``, −1 for all else."""
    labels = file[columns.treatment].labels()
    arms = {label: i for i, label in enumerate(columns.arms)}
    return labels.take([arms.get(name, -1) for name in labels.names], -1, np.int64)


def _screen(
    file: File, columns: TableColumns, exclude: Sequence[Kind], arm: NDArray[np.int64], more: int = 0
) -> tuple[NDArray[np.bool_], Rows]:
    """``[N]`` rows to keep, and the counts, of ``more`` usable rows too."""
    cost, value = _cost(file, columns, arm), file[columns.value].numbers(finite=False)
    propensity, zeros = _propensity(file, columns, arm), np.zeros(more, np.int64)
    arm_more, value_more, propensity_more = (
        np.append(x, zeros + fine) for x, fine in ((arm, 0), (value, 0), (propensity, 1))
    )
    cost_more = None if cost is None else np.append(cost, zeros)
    try:
        keep, rows = screen_rows(arm_more, value_more, propensity_more, columns.arms, cost_more, exclude)
    except InputError as error:
        found, allowed, fix = error.parts
        name = file[columns.treatment].file
        raise InputError(f"{name}: {found}", allowed, fix.replace("by exclude=", "by data.exclude=")) from error
    return keep[: len(arm)], rows


def _attrition(arms: NDArray[np.int64], lost: NDArray[np.int64]) -> float:
    """``Rows.attrition_p`` of counts ``[K]``."""
    share = lost.sum() / max(arms.sum(), 1)
    if not 0 < share < 1:
        return 1.0
    here = arms > 0
    chi_square = ((lost - arms * share)[here] ** 2 / (arms * share * (1 - share))[here]).sum()
    return float(chi_square_p(torch.tensor(chi_square), float(here.sum() - 1)))


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
