"""A small trial with repeat users, as file and as table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from lightning_budget.data.columns import TableColumns

N = 600


@pytest.fixture
def trial() -> pa.Table:
    """600 rows of 150 users, three arms, every kind of column."""
    rng = np.random.default_rng(7)
    user = rng.integers(0, 150, N)
    arm = np.array([0, 0, 1, 2])[rng.integers(0, 4, N)]
    lengths = rng.integers(0, 4, N)
    viewed = [[f"c{j}" for j in rng.integers(0, 9, n)] for n in lengths]
    return pa.table(
        {
            "uid": user,
            "arm": np.array(["none", "low", "high"])[arm],
            "spend": rng.exponential(3.0, N).round(3),
            "buys": rng.integers(0, 2, N),
            "paid": np.array([0.0, 1.0, 2.5])[arm],
            "p": np.array([0.5, 0.25, 0.25])[arm],
            "age": rng.integers(18, 80, N),
            "score": rng.standard_normal(N).round(4),
            "member": rng.integers(0, 2, N).astype(bool),
            "city": pa.array(np.array(["Rome", "Bonn", "Oslo", "Bern"])[rng.integers(0, 4, N)]),
            "level": rng.integers(1, 13, N),
            "viewed": pa.array(viewed, pa.list_(pa.string())),
        }
    )


@pytest.fixture
def columns() -> TableColumns:
    """What the columns of ``trial`` mean."""
    return TableColumns(
        treatment="arm",
        arms=("none", "low", "high"),
        value="spend",
        cost="paid",
        propensity="p",
        dense=("age", "score"),
        categorical=("city", "level"),
        lists=("viewed",),
        user="uid",
    )


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a table as ``<name>``, by its suffix."""

    def write(table: pa.Table, name: str = "trial.parquet") -> Path:
        path = tmp_path / name
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(table, path)
        else:
            with pa.output_stream(path) as out:  # compresses by suffix
                pyarrow.csv.write_csv(table, out)
        return path

    return write


@pytest.fixture(scope="session")
def hillstrom() -> Path:
    """The real trial; tests of it are skipped where the file is absent."""
    root = os.environ.get("LIGHTNING_BUDGET_DATA") or Path(__file__).parents[3] / "shared" / "data"
    path = Path(root) / "hillstrom" / "hillstrom.parquet"
    if not path.exists():
        pytest.skip(f"needs {path} (set LIGHTNING_BUDGET_DATA to the folder that holds hillstrom/)")
    return path
