"""What a scan finds in a piece, and in all of them: sums in float64, merged in the order of the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.columns import ESTIMATED, TableColumns
from lightning_budget.data.dense import numbers_or_null
from lightning_budget.data.files import File
from lightning_budget.data.outcomes import cost_of, outcome_of, propensity_of, treatment_of, weight_of
from lightning_budget.data.splits import SPLITS
from lightning_budget.data.strata import strata_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PieceFacts:
    """Of one piece, of several, or of all; sums are over training rows, each times its sample weight w.

    Attributes:
        rows: of each split.
        moments: ``[D, 3]`` of each dense column: Σ w, mean, and Σ w (x − mean)² where it has
            a number.
        missing: ``[D]`` Σ w where it has none.
        arms: ``[K, 7]`` rows, Σ w, Σ w · value, Σ w · cost, Σ w · 1[value > 0], Σ w · 1[cost > 0] and
            Σ w · cost · 1[value ≤ 0] of those given each arm.
        squares: ``[2]`` Σ w · value², Σ w · cost².
        value_min: least value of a training row, ∞ where there is none.
        strata: ``[K]`` Σ w of those given each arm, by stratum, where propensities are estimated.
    """

    rows: tuple[int, int, int]
    moments: Floats
    missing: Floats
    arms: Floats
    squares: Floats
    value_min: float
    strata: dict[tuple[str, ...], Floats]


def facts_of(file: File, columns: TableColumns, part: NDArray[np.int8]) -> PieceFacts:
    """Check every row of a piece, and add up those that train.

    Args:
        part: ``[N]`` the rows' splits.

    Raises:
        InputError: for anything amiss in a row, naming file and column.
    """
    treatment = treatment_of(file, columns)
    value = outcome_of(file[columns.value], columns.value_kind)
    cost = cost_of(file, columns, treatment)
    if columns.propensity != ESTIMATED:
        propensity_of(file, columns, treatment)
    given = weight_of(file, columns)
    train = part == 0
    w = train.astype(np.float64) if given is None else np.where(train, given, 0).astype(np.float64)
    k = len(columns.arms)
    above = w * (value > 0), w * (cost > 0), w * cost * (value <= 0)
    columns_of_rows = (train.astype(np.float64), w, w * value, w * cost, *above)
    dense = [_moments(file, name, columns, w) for name in columns.dense]
    return PieceFacts(
        rows=tuple(np.bincount(part[part >= 0], minlength=len(SPLITS)).tolist()),
        moments=np.array([m for m, _ in dense], np.float64).reshape(len(dense), 3),
        missing=np.array([n for _, n in dense], np.float64),
        arms=np.stack([np.bincount(treatment, x, k) for x in columns_of_rows], axis=1).astype(np.float64),
        squares=np.array([(w * np.square(x, dtype=np.float64)).sum() for x in (value, cost)]),
        value_min=float(np.min(value, where=train, initial=np.inf)),
        strata=_strata_sums(file, columns, treatment, train, w) if columns.propensity == ESTIMATED else {},
    )


def merged(parts: Sequence[PieceFacts]) -> PieceFacts:
    """Of several pieces together, added up in this order.

    Source: Chan, Golub, LeVeque 1979 (moments of two samples together).
    """
    strata: dict[tuple[str, ...], Floats] = {}
    for p in parts:
        for labels, sums in p.strata.items():
            strata[labels] = strata.get(labels, 0) + sums
    moments = parts[0].moments
    for p in parts[1:]:
        moments = merge_moments(moments, p.moments)
    return PieceFacts(
        rows=tuple(np.sum([p.rows for p in parts], axis=0).tolist()),
        moments=moments,
        missing=np.sum([p.missing for p in parts], axis=0),
        arms=np.sum([p.arms for p in parts], axis=0),
        squares=np.sum([p.squares for p in parts], axis=0),
        value_min=min(p.value_min for p in parts),
        strata=strata,
    )


def merge_moments(a: Floats, b: Floats) -> Floats:
    """``[D, 3]`` weight, mean, and sum of squares about the mean, of two samples together."""
    total = a[:, 0] + b[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0, b[:, 0] / total, 0)
    off = b[:, 1] - a[:, 1]
    return np.stack([total, a[:, 1] + share * off, a[:, 2] + b[:, 2] + a[:, 0] * share * off**2], axis=1)


def _moments(file: File, name: str, columns: TableColumns, w: Floats) -> tuple[tuple[float, float, float], float]:
    if name not in columns.nulls:
        x, held, missing = file[name].numbers(), w, 0.0
    else:
        x = numbers_or_null(file[name])
        null = np.isnan(x)
        x, held, missing = np.nan_to_num(x), np.where(null, 0, w), float(w[null].sum())
    total = float(held.sum())
    if not total:
        return (0.0, 0.0, 0.0), missing
    x = x.astype(np.float64)
    mean = float(np.einsum("i,i", held, x)) / total
    x -= mean
    return (total, mean, float(np.einsum("i,i,i", held, x, x))), missing


def _strata_sums(
    file: File, columns: TableColumns, treatment: NDArray[np.int64], train: NDArray[np.bool_], w: Floats
) -> dict[tuple[str, ...], Floats]:
    k = len(columns.arms)
    stratum, names = strata_of(file, columns.strata, len(treatment))
    sums = np.bincount(stratum * k + treatment, w, len(names) * k).reshape(-1, k)
    seen = np.flatnonzero(np.bincount(stratum[train], minlength=len(names)))
    return {names[i]: sums[i] for i in seen.tolist()}
