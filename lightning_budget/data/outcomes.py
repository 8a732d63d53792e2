"""Treatment, value, cost, propensity and weight of every row of a file."""

from __future__ import annotations

from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.column import Column
from lightning_budget.data.columns import ESTIMATED, LEVEL, UNIFORM, TableColumns
from lightning_budget.data.files import File
from lightning_budget.data.strata import estimated
from lightning_budget.errors import InputError
from lightning_budget.learned import ArmShares


def treatment_of(file: File, columns: TableColumns) -> NDArray[np.int64]:
    """``[N]`` positions in ``columns.arms``.

    Raises:
        InputError: for a row without an arm, or with one that is not among them.
    """
    column = file[columns.treatment]
    arms = {label: i for i, label in enumerate(columns.arms)}
    factored = column.factored()
    if factored is not None and all(name and name in arms for name in factored[1]):
        return np.array([arms[name] for name in factored[1]], np.int64).take(factored[0])
    labels = column.labels()
    if (missing := labels.codes < 0).any():
        raise column.error(
            f"has {int(missing.sum())} null or empty entries of {len(missing)}{column.first(missing)}",
            "an arm in every row",
            "drop those rows",
        )
    codes = labels.take([arms.get(n, -1) for n in labels.names], -1, np.int64)
    if (unknown := codes < 0).any():
        name = labels.names[labels.codes[unknown.argmax()]]
        close = get_close_matches(name, arms, n=1, cutoff=0.7)
        fix = f"spell {close[0]!r} as in the file" if close else "add it to arms, or drop its rows"
        rows = f"{int(unknown.sum())} without an arm of the trial{column.first(unknown)}"
        raise column.error(f"has the unknown arm {name!r}", ", ".join(map(repr, arms)), f"{fix} ({rows})")
    return codes


def outcome_of(column: Column, kind: str) -> NDArray[np.float32]:
    """``[N]`` observed outcomes of one kind.

    Raises:
        InputError: for a binary outcome with other entries than 0 and 1.
    """
    x = column.numbers()
    if kind == "binary":
        _check_binary(column, x)
    return x


def _check_binary(column: Column, x: NDArray[np.float32]) -> None:
    if (bad := (x != 0) & (x != 1)).any():
        found = f"has {int(bad.sum())} entries other than 0 and 1{column.first(bad)}"
        raise column.error(found, "0 and 1 for a binary outcome", "set its kind to continuous")


def cost_of(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> NDArray[np.float32]:
    """``[N]`` observed, computed or known costs.

    Raises:
        InputError: for negative costs, and costs other than those known beforehand; of a formula also for names that
            are no columns of numbers, and results that are not finite.
    """
    known = np.array(
        [np.nan if c is None else c for c in columns.cost_per_arm or (None,) * len(columns.arms)], np.float32
    )
    if columns.cost is None and columns.cost_formula is None:
        return known[treatment]
    column, cost = _observed(file, columns, treatment)
    if (bad := cost < 0).any():
        found = f"has {int(bad.sum())} negative costs{column.first(bad)}"
        raise column.error(found, "costs ≥ 0", "mend them, or count income as value instead")
    if columns.cost_per_arm is not None and (off := np.abs(cost - known[treatment]) > 1e-6 + 1e-6 * cost).any():
        i = int(off.argmax())
        arm = columns.arms[treatment[i]]
        raise column.error(
            f"has cost {cost[i]:g} for arm {arm!r}",
            f"{known[treatment[i]]:g} as in cost_per_arm",
            f"give null for {arm!r} in cost_per_arm",
        )
    return cost


def _observed(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> tuple[Column, NDArray[np.float32]]:
    """``[N]`` costs by column or formula, and what to name in errors."""
    if columns.cost is not None:
        return file[columns.cost], outcome_of(file[columns.cost], columns.cost_kind)
    for name in columns.formula_columns:
        file[name].numbers()
    treated = file[columns.treatment]
    column = Column(treated.file, f"{columns.cost_formula} (cost_formula)", treated.data, treated.where)
    cost = formula_cost(file, columns, treatment)
    if (bad := ~np.isfinite(cost)).any():
        found = f"gives {int(bad.sum())} costs that are not finite{column.first(bad)}"
        raise column.error(found, "finite costs", "look for divisions by 0")
    if columns.cost_kind == "binary":
        _check_binary(column, cost)
    return column, cost


def formula_cost(file: File, columns: TableColumns, treatment: NDArray[np.int64]) -> NDArray[np.float32]:
    """``[N]`` costs by the formula; NaN where a column is null or, with levels, the arm is none of the trial's (−1)."""
    formula = columns.formula
    if formula is None:
        raise InputError("no cost_formula", "a formula", "give cost_formula")
    values = {name: file[name].numbers(finite=False).astype(np.float64) for name in columns.formula_columns}
    if columns.levels:
        values[LEVEL] = np.array([*columns.levels, np.nan])[treatment]
    with np.errstate(over="ignore"):
        return np.broadcast_to(formula(values), treatment.shape).astype(np.float32)


def propensity_of(
    file: File, columns: TableColumns, treatment: NDArray[np.int64], shares: ArmShares | None = None
) -> NDArray[np.float32]:
    """``[N]`` probability of the arm given.

    Args:
        shares: of the training split, where propensities are estimated.

    Raises:
        InputError: for entries outside (0, 1], and strata that the training split does not have.
    """
    if columns.propensity == UNIFORM:
        return np.full(len(treatment), 1 / len(columns.arms), np.float32)
    if columns.propensity == ESTIMATED:
        if shares is None or shares.columns != columns.strata:
            raise InputError(
                f"propensity={ESTIMATED} with strata={list(columns.strata)}",
                "the strata of training" + ("" if shares is None else f", {list(shares.columns)}"),
                "set propensity and strata as in training",
            )
        return estimated(file, columns, shares, treatment)
    if not isinstance(columns.propensity, str):
        return np.array(columns.propensity, np.float32)[treatment]
    column = file[columns.propensity]
    p = column.numbers()
    if (bad := (p <= 0) | (p > 1)).any():
        found = f"has {int(bad.sum())} propensities outside (0, 1], the first {p[bad.argmax()]:g}"
        raise column.error(found, "probabilities in (0, 1] of the arm given", "mend them, or drop those rows")
    return p


def weight_of(file: File, columns: TableColumns) -> NDArray[np.float32] | None:
    """``[N]`` sample weights, where there is a column of them.

    Raises:
        InputError: for weights that are negative or no finite numbers.
    """
    if columns.weight is None:
        return None
    column = file[columns.weight]
    weight = column.numbers()
    if (bad := weight < 0).any():
        found = f"has {int(bad.sum())} negative weights{column.first(bad)}"
        raise column.error(found, "weights ≥ 0", "mend them, or drop those rows")
    return weight
