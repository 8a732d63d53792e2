"""Rows of features reach the model as training gave them, from Parquet, csv and folders named key=value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from streams import BATCH, arms

from lightning_budget.allocation import allocate
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.streaming import Request, allocate_files
from lightning_budget.streaming.features import FeatureScorer, as_parquet, check_features
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.source import open_source
from lightning_budget.streaming.work import workplace

pytestmark = pytest.mark.usefixtures("little")
N = 1500
SCHEMA = DataSchema(
    treatments=("none", "small", "large"),
    dense=("age",),
    sparse=(SparseFeature("city", 4, False, ("b", "c", "a")),),
    value_kind="continuous",
    cost_kind="continuous",
)


def model(dense: torch.Tensor, sparse: Any) -> ResponsePrediction:
    """Row by row, so that a row's neighbours do not matter: by age, and by the row of the city in its table."""
    city = sparse.values().float()
    steps = torch.arange(3.0)
    return ResponsePrediction(dense * steps.sqrt() * (1 + city[:, None]), (1 + dense**2) * steps)


def table() -> pa.Table:
    draw = np.random.default_rng(0)
    age = draw.random(N, dtype=np.float32)
    city = draw.integers(0, 4, N)
    return pa.table(
        {"age": age, "user_id": draw.permutation(N) + 100, "city": [["a", "b", "c", "elsewhere"][i] for i in city]}
    )


def expected() -> dict[int, int]:
    rows = table()
    # The row of a label in its table is 1 more than its position in the vocabulary; 0 is for the unknown.
    city = torch.tensor([{"b": 1.0, "c": 2.0, "a": 3.0, "elsewhere": 0.0}[c] for c in rows["city"].to_pylist()])
    age = torch.tensor(rows["age"].to_numpy())[:, None]
    steps = torch.arange(3.0)
    ids = torch.tensor(rows["user_id"].to_numpy())
    found = allocate(age * steps.sqrt() * (1 + city[:, None]), (1 + age**2) * steps, 1200.0, key=ids)
    return dict(zip(ids.tolist(), found.assignment.tolist(), strict=True))


def scorer() -> FeatureScorer:
    return FeatureScorer(model, SCHEMA, torch.device("cpu"), "user_id", "one")


def run(path: Path, output: Path) -> None:
    with workplace(output, Ranks()) as folder:
        if path.suffix == ".csv":
            path = as_parquet(path, SCHEMA, "user_id", folder / "csv")
        source = open_source(path)
        found = scorer()
        check_features(source, found)
        allocate_files(source, found, Request(output, 1200.0, batch_rows=BATCH, shown=False))


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table(), tmp_path / "in.parquet", row_group_size=400)
    run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert arms(tmp_path / "out.parquet") == expected()
    names = pyarrow.parquet.read_table(tmp_path / "out.parquet")["treatment_name"].to_pylist()
    assert set(names) == set(SCHEMA.treatments)


def test_csv(tmp_path: Path) -> None:
    pyarrow.csv.write_csv(table(), tmp_path / "in.csv")
    run(tmp_path / "in.csv", tmp_path / "out.parquet")
    assert len(set(expected().values())) == 3
    found = {int(u): t for u, t in arms(tmp_path / "out.parquet").items()}
    # A csv file's ids are text: where users tie, which they do not here, others may win.
    assert found == expected()
    assert {p.name for p in tmp_path.iterdir()} == {"in.csv", "out.parquet"}


def test_columns_named_by_folders(tmp_path: Path) -> None:
    rows = table()
    for city in ("a", "b", "c", "elsewhere"):
        folder = tmp_path / "in" / f"city={city}"
        folder.mkdir(parents=True)
        here = rows.filter(pa.compute.equal(rows["city"], city)).drop_columns(["city"])
        pyarrow.parquet.write_table(here, folder / "0.parquet")
    run(tmp_path / "in", tmp_path / "out")
    assert arms(tmp_path / "out") == expected()
    assert (tmp_path / "out" / "city=a" / "0.parquet").is_file()


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(table().drop_columns(["age"]), tmp_path / "in" / "0.parquet")
    with pytest.raises(InputError, match="no column 'age'"):
        run(tmp_path / "in", tmp_path / "out")
    pyarrow.parquet.write_table(table(), tmp_path / "in" / "0.parquet")
    pyarrow.parquet.write_table(table().drop_columns(["city"]), tmp_path / "in" / "1.parquet")
    with pytest.raises(InputError, match=r"1.parquet: no column 'city'"):
        run(tmp_path / "in", tmp_path / "out")
    null = table().set_column(0, "age", pa.array([None] + [0.5] * (N - 1), pa.float32()))
    pyarrow.parquet.write_table(null, tmp_path / "in" / "1.parquet")
    with pytest.raises(InputError, match=r"1.parquet: column 'age' has 1 null"):
        run(tmp_path / "in", tmp_path / "out")
