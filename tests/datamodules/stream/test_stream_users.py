"""Text that names users, some of it numbers: a user is the same in every piece, and in one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest
from streamed import assert_same_table, module

from datamodules import TableRCTDataModule

HALF = 300
SETTINGS: list[dict[str, Any]] = [{}, {"split": [0.4, 0.3, 0.3]}, {"stratify": True}]


@pytest.fixture
def mixed(trial: pa.Table) -> pa.Table:
    """Two halves: users 0 … 99 by their numbers alone, then they and others that have names."""
    rng = np.random.default_rng(5)
    number = np.concatenate([rng.integers(0, 100, HALF), rng.integers(0, 150, len(trial) - HALF)])
    text = [str(i) if i < 100 else f"guest-{i}" for i in number.tolist()]
    return trial.set_column(trial.schema.get_field_index("uid"), "uid", pa.array(text))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dictionary", [False, True])
def test_streamed_as_read_whole(tmp_path: Path, mixed: pa.Table, settings: dict[str, Any], dictionary: bool) -> None:
    if dictionary:
        mixed = mixed.set_column(0, "uid", pc.dictionary_encode(mixed["uid"]))
    folder = tmp_path / "d"
    folder.mkdir()
    pyarrow.parquet.write_table(mixed, folder / "part-0.parquet", row_group_size=HALF)
    assert pyarrow.parquet.ParquetFile(folder / "part-0.parquet").num_row_groups == 2
    streamed = module(folder, **settings)
    streamed.setup()
    held = TableRCTDataModule(str(folder), "arm", ["none", "low", "high"], "spend", "paid", dense=["age"])
    held.columns, held.rule, held.exclude, held.check_shares = streamed.columns, streamed.rule, streamed.exclude, 0
    held.setup()
    splits = {name: streamed.split(name) for name in ("train", "val", "test")}
    users = {name: set(table.user.tolist()) for name, table in splits.items()}
    assert sum(map(len, users.values())) == len(set().union(*users.values())) == len(set(mixed["uid"].to_pylist()))
    for name, table in splits.items():
        assert_same_table(table, held.split(name))
