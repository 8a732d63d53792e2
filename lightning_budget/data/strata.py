"""Propensities estimated as shares of the arms within strata of the training split.

Of the training rows of stratum s::

    p_j(s) = Σ_{s_i = s, t_i = j} w_i / Σ_{s_i = s} w_i,    w the sample weights, else 1

so that weighted means by 1 / p of a stratum are its means by arm (post-stratification). No count is smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.columns import TableColumns
from lightning_budget.data.files import File
from lightning_budget.errors import InputError
from lightning_budget.learned import ArmShares


def learn_shares(
    file: File,
    columns: TableColumns,
    treatment: NDArray[np.int64],
    training: NDArray[np.bool_],
    weight: NDArray[np.float32] | None = None,
) -> ArmShares:
    """Shares of the arms within each stratum of the rows ``training``.

    Args:
        file: N rows.
        treatment: ``[N]`` positions in ``columns.arms``.
        training: ``[N]`` rows to count.
        weight: ``[N]`` sample weights.

    Raises:
        InputError: for a stratum in which an arm has no row, or none that counts.
    """
    stratum, names = strata_of(file, columns.strata, len(treatment))
    k = len(columns.arms)
    w = training.astype(np.float64) if weight is None else weight * training.astype(np.float64)
    total = np.bincount(stratum * k + treatment, weights=w, minlength=len(names) * k).astype(np.float64).reshape(-1, k)
    seen = np.flatnonzero(np.bincount(stratum[training], minlength=len(names)))
    return shares_of(_name_of(file), columns, [names[s] for s in seen], total[seen])


def shares_of(
    name: str, columns: TableColumns, strata: Sequence[tuple[str, ...]], total: NDArray[np.float64]
) -> ArmShares:
    """Shares from what the rows of each stratum and arm count.

    Args:
        name: of the file, for errors.
        total: ``[S, K]``.

    Raises:
        InputError: for a stratum in which an arm has no row, or none that counts.
    """
    order = sorted(range(len(strata)), key=strata.__getitem__)
    share = (total / np.maximum(total.sum(1, keepdims=True), 1e-300))[order].tolist()
    shares = ArmShares(columns.strata, tuple(strata[s] for s in order), tuple(map(tuple, share)))
    empty = [(s, j) for s, row in enumerate(shares.share) for j, x in enumerate(row) if not x > 0]
    if empty:
        s, j = empty[0]
        arms = columns.arms[j]
        more = f" ({len(empty)} such pairs of stratum and arm)" if len(empty) > 1 else ""
        raise InputError(
            f"{name}: stratum {shares.describe(shares.strata[s])} has no training row of arm {arms!r}{more}",
            "rows of every arm in every stratum of the training split",
            "name fewer columns in strata, or give the propensities",
        )
    return shares


def estimated(
    file: File, columns: TableColumns, shares: ArmShares, treatment: NDArray[np.int64]
) -> NDArray[np.float32]:
    """``[N]`` share of the arm given in the row's stratum.

    Raises:
        InputError: for a stratum that the training split does not have.
    """
    stratum, names = strata_of(file, shares.columns, len(treatment))
    row_of = {labels: i for i, labels in enumerate(shares.strata)}
    index = np.array([row_of.get(labels, -1) for labels in names], np.int64)
    if (unseen := index[stratum] < 0).any():
        labels = names[stratum[unseen.argmax()]]
        where = file[columns.treatment].first(unseen)
        raise InputError(
            f"{_name_of(file)}: {int(unseen.sum())} rows in strata that the training split does not have: "
            f"{shares.describe(labels)}{where}",
            f"the {len(shares.strata)} strata of the training split",
            "name fewer columns in strata, or drop those rows",
        )
    return np.array(shares.share, np.float64)[index[stratum], treatment].astype(np.float32)


def strata_of(file: File, columns: tuple[str, ...], rows: int) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
    """``[N]`` the stratum of each row, and the labels of each stratum."""
    stratum, names = np.zeros(rows, np.int64), [()]
    for column in columns:
        labels = file[column].labels()
        of_column = [*labels.names, ""]
        # Null and empty text are one label.
        code = np.where(labels.codes < 0, len(labels.names), labels.codes)
        found, stratum = np.unique(stratum * len(of_column) + code, return_inverse=True)
        names = [(*names[i // len(of_column)], of_column[i % len(of_column)]) for i in found.tolist()]
    return stratum, names


def _name_of(file: File) -> str:
    return next(iter(file.values())).file
