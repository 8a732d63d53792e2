"""A tiny data set with a description of its own, and the real ones where they are."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from lightning_budget.published.description import Arm, Published, Rate

ROWS = 2_000


@pytest.fixture(scope="session")
def toy() -> Published:
    """Two arms, 2:1; the figures are those of :func:`toy_table`."""
    return Published(
        name="toy",
        title="a toy",
        where="the shop",
        licence="none",
        allows="anything",
        citation="nobody",
        files=(),
        rows=ROWS,
        columns={"x": "double", "n": "int16", "city": "label", "arm": "label", "buys": "flag", "visits": "flag"},
        treatment="arm",
        arms=(Arm("a", 2 / 3), Arm("b", 1 / 3)),
        implies=(("buys", "visits"),),
    )


@pytest.fixture(scope="session")
def toy_table() -> pa.Table:
    """2,000 rows, of which 0.3 visit and 0.1 buy."""
    rng = np.random.default_rng(0)
    arm = np.array(["a", "b"])[(rng.permutation(ROWS) % 3 == 2).astype(int)]
    rank = rng.permutation(ROWS)
    return pa.table(
        {
            "x": rng.standard_normal(ROWS),
            "n": rng.integers(0, 9, ROWS).astype(np.int16),
            "city": np.array(["Rome", "Oslo, N"])[rng.integers(0, 2, ROWS)],
            "arm": arm,
            "buys": (rank < 0.1 * ROWS).astype(np.int8),
            "visits": (rank < 0.3 * ROWS).astype(np.int8),
        }
    )


@pytest.fixture(scope="session")
def published_toy(toy: Published) -> Published:
    """The toy with the means that its table has."""
    return replace(toy, rates=(Rate("visits", 0.3, 1), Rate("buys", 0.1, 1)))


def write(table: pa.Table, path: Path) -> Path:
    """A table as the format of its suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=700)
    else:
        with pa.output_stream(str(path)) as out:  # compresses by suffix
            pyarrow.csv.write_csv(table, out)
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a table as ``<name>``, by its suffix."""
    return lambda table, name="toy.parquet": write(table, tmp_path / name)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A real file; tests of it are skipped where it is absent."""
    root = Path(os.environ.get("LIGHTNING_BUDGET_DATA") or Path(__file__).parents[3] / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"needs {root / name} (set LIGHTNING_BUDGET_DATA to the folder that holds it)")
        return root / name

    return find


@pytest.fixture(scope="session")
def hillstrom_csv(shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hillstrom's file as he published it, from its cells."""
    table = pyarrow.parquet.read_table(shared("hillstrom/hillstrom.parquet"))
    columns = [table[name].to_pylist() for name in table.column_names]
    path = tmp_path_factory.mktemp("hillstrom") / "hillstrom.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\r\n")
        out.writerow(table.column_names)
        out.writerows(zip(*[[f"{v:.12g}" if isinstance(v, float) else v for v in c] for c in columns], strict=True))
    return path


def gzipped(path: Path) -> bytes:
    """A file, compressed."""
    return gzip.compress(path.read_bytes(), 1)
