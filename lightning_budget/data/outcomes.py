"""Treatment, value, cost and propensity of every row of a file."""

from __future__ import annotations

from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.columns import UNIFORM, TableColumns
from lightning_budget.data.files import File


def treatment_of(file: File, columns: TableColumns) -> NDArray[np.int64]:
    """``[N]`` positions in ``columns.arms``.

    Raises:
        InputError: for a row without an arm, or with one that is not among them.
    """
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


def outcome_of(column: Column, kind: str) -> NDArray[np.float32]:
    """``[N]`` observed outcomes of one kind.

    Raises:
        InputError: for a binary outcome with other entries than 0 and 1.
    """
    x = column.numbers()
    if kind == "binary" and (bad := int(((x != 0) & (x != 1)).sum())):
        raise column.error(
            f"has {bad} entries other than 0 and 1", "0 and 1 for a binary outcome", "set its kind to continuous"
        )
    return x


def cost_of(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> NDArray[np.float32]:
    """``[N]`` observed or known costs.

    Raises:
        InputError: for negative costs, and costs other than those known beforehand.
    """
    known = np.array(
        [np.nan if c is None else c for c in columns.cost_per_arm or (None,) * len(columns.arms)], np.float32
    )
    if columns.cost is None:
        return known[treatment]
    column = file[columns.cost]
    cost = outcome_of(column, columns.cost_kind)
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


def propensity_of(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> NDArray[np.float32]:
    """``[N]`` probability of the arm given.

    Raises:
        InputError: for entries outside (0, 1].
    """
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
