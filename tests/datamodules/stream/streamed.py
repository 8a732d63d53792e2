"""A trial of 600 rows as a folder of small files, and what a streaming module gives of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch

from datamodules import ParquetRCTDataModule
from lightning_budget.batch import RCTBatch
from lightning_budget.data.stream.windows import TrainingStream
from lightning_budget.table import RCTTable

COLUMNS: dict[str, Any] = {
    "treatment": "arm",
    "arms": ["none", "low", "high"],
    "value": "spend",
    "cost": "paid",
    "propensity": "p",
    "dense": ["age", "score"],
    "categorical": ["city", "level"],
    "lists": ["viewed"],
    "user": "uid",
    "check_shares": 0,
}


def write_folder(table: pa.Table, folder: Path, files: int = 3, group_rows: int = 40) -> Path:
    """The rows in their order, in so many files of unequal sizes and with row groups of so many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [table.num_rows * (i + 1) ** 2 // files**2 for i in range(files)]
    for i, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
        path = folder / f"part-{i}.parquet"
        pyarrow.parquet.write_table(table.slice(start, stop - start), path, row_group_size=group_rows)
    return folder


def module(path: Path | str, **changes: Any) -> ParquetRCTDataModule:
    """Not set up; nothing cached."""
    sizes = {"batch_size": 32, "buffer_rows": 100, "cache": None}
    return ParquetRCTDataModule(str(path), **{**COLUMNS, **sizes, **changes})


def all_rows(batches: Iterable[RCTBatch]) -> list[int]:
    """Positions of the rows of all batches."""
    return torch.cat([b.row for b in batches]).tolist()


def stream_of(data: ParquetRCTDataModule, **plan: int) -> TrainingStream:
    """The training stream with another plan."""
    data.setup()
    stream = data.train_dataloader().stream
    return replace(stream, plan=replace(stream.plan, **plan))


def assert_same_batch(a: RCTBatch, b: RCTBatch, rows: bool = True) -> None:
    """Equal in everything, ``rows`` included."""
    names = ["dense", "treatment", "value", "cost", "propensity", *(["row"] if rows else [])]
    for name in names:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.weight is None) == (b.weight is None)
    assert a.weight is None or torch.equal(a.weight, b.weight)  # type: ignore[arg-type]
    assert (a.sparse is None) == (b.sparse is None)
    if a.sparse is not None and b.sparse is not None:
        assert a.sparse.keys() == b.sparse.keys()
        assert torch.equal(a.sparse.lengths(), b.sparse.lengths())
        assert torch.equal(a.sparse.values(), b.sparse.values())


def assert_same_table(a: RCTTable, b: RCTTable) -> None:
    """Equal rows in equal order."""
    assert torch.equal(a.user, b.user)
    index = torch.arange(len(a))
    assert_same_batch(a.batch(index), b.batch(index))
