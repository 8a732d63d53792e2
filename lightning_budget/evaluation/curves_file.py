"""Whole curves as a Parquet file: a row per point, ``method, kind, multiplier, spend, value``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lightning_budget.data.files import read_columns, write_parquet
from lightning_budget.evaluation.results import Curves
from lightning_budget.metrics.functional import CostCurve
from lightning_budget.report.compute import thinned

POINTS = 100_000
NUMBERS = ("multiplier", "spend", "value")


def write_curves(curves: Mapping[str, Mapping[str, CostCurve]], path: str | os.PathLike[str]) -> None:
    """Write every point of every curve, whole or not at all, multipliers falling from +inf.

    A curve of more than 100,000 points is thinned to that, its ends kept: read off it, a budget's value is then that of
    the straight line between two of its points.

    Raises:
        InputError: if the file cannot be written.
    """
    parts = [_points(kind, name, curve) for kind, by_name in curves.items() for name, curve in by_name.items()]
    write_parquet(pa.concat_tables(parts).unify_dictionaries(), Path(path))


def read_curves(path: str | os.PathLike[str]) -> Curves:
    """The curves of a file of :func:`write_curves`: ``read_curves(path)["eom_hajek"]["two_stage"].at_budget(0.5)``.

    Raises:
        InputError: if the file cannot be read or lacks a column.
    """
    file = read_columns(Path(path), [("method", "treatment"), ("kind", "treatment"), *((n, "dense") for n in NUMBERS)])
    kind, method = (file[n].labels() for n in ("kind", "method"))
    # A multiplier of +inf is no number that Column.numbers would let pass.
    numbers = [torch.from_numpy(file[n].data.to_numpy().copy()) for n in NUMBERS]
    curves: Curves = {}
    for k, kind_name in enumerate(kind.names):
        for m, method_name in enumerate(method.names):
            rows = torch.from_numpy(np.flatnonzero((kind.codes == k) & (method.codes == m)))
            if len(rows):
                curves.setdefault(kind_name, {})[method_name] = CostCurve(*(x[rows] for x in numbers))
    return curves


def _points(kind: str, method: str, curve: CostCurve) -> pa.Table:
    columns = [getattr(curve, n) for n in NUMBERS]
    if len(curve.spend) > POINTS:
        index = thinned(curve, POINTS)
        columns = [x[index] for x in columns]
    size = len(columns[0])
    names = {
        n: pa.DictionaryArray.from_arrays(np.zeros(size, np.int32), [x])
        for n, x in (("method", method), ("kind", kind))
    }
    return pa.table({**names, **{n: pa.array(x.numpy()) for n, x in zip(NUMBERS, columns, strict=True)}})
