"""Exposures as columns of Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from lightning_budget.campaign.campaign import Campaign, Exposures

GROUP_ROWS = 1 << 16
"""Rows of a row group: what a reader that shuffles in bounded memory takes at a time."""

REPEATING = ("day", "city", "tier", "device", "treatment", "cost", "propensity", "log_frequency", "weekend", "hour")
"""Columns of few different entries, worth a dictionary; the others are numbers that hardly repeat."""


def columns_of(exposures: Exposures, campaign: Campaign, oracle: bool) -> pa.Table:
    """One row per exposure.

    ============================  ============================  =====================================================
    column                        type                          what it holds
    ============================  ============================  =====================================================
    ``user_id``                   int64                         0 … users − 1
    ``day``                       int32                         from the first day of the trial
    features                      float                         as ``campaign.schema.dense``
    ``city``, ``tier``, ``device``  int32                       from 0
    ``viewed``                    list of int32                 from 0
    ``treatment``                 text, dictionary              name of the arm given
    ``value``, ``cost``           float                         observed
    ``propensity``                float                         probability of the arm given
    ``true_value_j``, ``true_cost_j``  float                    with ``oracle``: means under arm j = 0 … K − 1
    ============================  ============================  =====================================================
    """
    x = exposures
    columns: dict[str, pa.Array] = {"user_id": pa.array(x.user), "day": _small(x.day)}
    for name, numbers in zip(campaign.schema.dense, x.dense.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(numbers))
    columns |= {name: _small(getattr(x, name)) for name in ("city", "tier", "device")}
    columns["viewed"] = pa.ListArray.from_arrays(_small(x.viewed.offsets), _small(x.viewed.values))
    arms = pa.array(campaign.schema.treatments)
    columns["treatment"] = pa.DictionaryArray.from_arrays(_small(x.treatment), arms)
    columns |= {name: pa.array(getattr(x, name)) for name in ("value", "cost", "propensity")}
    if oracle:
        for name in ("true_value", "true_cost"):
            for j, numbers in enumerate(getattr(x, name).T):
                columns[f"{name}_{j}"] = pa.array(np.ascontiguousarray(numbers))
    return pa.table(columns)


def write_columns(table: pa.Table, path: Path) -> None:
    """Write in row groups of ``GROUP_ROWS``.

    Raises:
        OSError: if it cannot be written.
    """
    pyarrow.parquet.write_table(
        table,
        path,
        row_group_size=GROUP_ROWS,
        use_dictionary=[*REPEATING, "viewed.list.element"],  # type: ignore[arg-type]
        write_statistics=["user_id", "day"],  # type: ignore[arg-type]
    )


def _small(x: np.ndarray) -> pa.Array:
    return pa.array(x.astype(np.int32))
