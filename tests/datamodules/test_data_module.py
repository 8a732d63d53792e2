"""A data module under Lightning's trainer: epochs, resuming, ranks, splits."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules import RCTDataModule, TableRCTDataModule
from lightning_budget.batch import RCTBatch
from lightning_budget.data.columns import TableColumns
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

Save = Callable[..., Path]
SCHEMA = DataSchema(("none", "some"), ("x",))


def table_of(n: int, seed: int) -> RCTTable:
    rng = np.random.default_rng(seed)
    return RCTTable(
        user=torch.arange(n),
        dense=torch.from_numpy(rng.standard_normal((n, 1)).astype(np.float32)),
        ids={},
        treatment=torch.arange(n) % 2,
        value=torch.from_numpy(rng.random(n).astype(np.float32)),
        cost=torch.zeros(n),
        propensity=torch.full((n,), 0.5),
    )


class Tiny(RCTDataModule):
    def __init__(self, rows: tuple[int, int, int] = (50, 23, 11), **batching: Any) -> None:
        super().__init__(**{"batch_size": 10, "eval_batch_size": 10, **batching})
        self.rows = rows
        self.loads = 0

    def load(self) -> tuple[dict[str, RCTTable], DataSchema]:
        self.loads += 1
        return {
            name: table_of(n, i) for i, (name, n) in enumerate(zip(("train", "val", "test"), self.rows, strict=True))
        }, SCHEMA


class Recorder(L.LightningModule):
    """Learns nothing and notes the rows of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.evaluated: list[list[int]] = []

    def training_step(self, batch: RCTBatch, _: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.row.tolist()))
        return (self.weight * batch.dense).sum()

    def validation_step(self, batch: RCTBatch, _: int) -> None:
        self.evaluated.append(batch.row.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, data: RCTDataModule, ckpt_path: Path | None = None, **options: Any) -> Recorder:
    model = Recorder()
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=False)
    return model


@pytest.mark.parametrize("workers", [0, 1])
def test_trainer_sets_the_epoch_and_resumes_anywhere(workers: int, tmp_path: Path) -> None:
    whole = fit(tmp_path, Tiny(num_workers=workers))
    # The garbage collector, which may come long after, would wait for each of them.
    assert not multiprocessing.active_children()
    rows = [r for _, r in whole.seen]
    assert [e for e, _ in whole.seen] == [0] * 5 + [1] * 5 + [2] * 5
    epochs = [[r for batch in rows[i : i + 5] for r in batch] for i in (0, 5, 10)]
    assert all(sorted(e) == list(range(50)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert whole.evaluated[-3:] == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    # As if killed after the step: inside an epoch, and at its end.
    for step in (3, 5, 7, 10, 14) if workers == 0 else (5, 7):
        resumed = fit(tmp_path / "resumed", Tiny(num_workers=workers), tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:], step


def test_resumes_from_a_checkpoint_after_validation(tmp_path: Path) -> None:
    model = Recorder()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    L.Trainer(max_epochs=3, accelerator="cpu", logger=False, callbacks=[keep], enable_progress_bar=False).fit(
        model, Tiny()
    )
    resumed = fit(tmp_path / "resumed", Tiny(), tmp_path / "epoch=0.ckpt")
    assert resumed.seen == model.seen[5:]


def test_ranks_share_the_global_batches() -> None:
    def batches(loader: str, rank: int, world: int) -> list[RCTBatch]:
        data = Tiny(seed=4)
        data.setup()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
        return list(getattr(data, loader)())

    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        alone, first, second = (batches(loader, *place) for place in ((0, 1), (0, 2), (1, 2)))
        assert len(alone) == len(first) == len(second)
        for whole, a, b in zip(alone, first, second, strict=True):
            assert len(a) == len(b)
            for name in ("row", "dense", "treatment", "value"):
                both = torch.cat([getattr(a, name), getattr(b, name)])
                assert torch.equal(both[: len(whole)], getattr(whole, name))
            assert torch.cat([a.row, b.row])[len(whole) :].eq(-1).all()


def test_batch_size_that_ranks_cannot_share() -> None:
    data = Tiny(batch_size=9)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)  # type: ignore[assignment]
    with pytest.raises(InputError, match="global batch size 9 over 2 processes"):
        data.train_dataloader()


def test_setup_once_and_statistics_from_training_only() -> None:
    data = Tiny()
    for stage in ("fit", "validate", "test", None):
        data.setup(stage)
    assert data.loads == 1
    assert data.statistics == DataStatistics.from_table(table_of(50, 0), SCHEMA)
    assert data.statistics != DataStatistics.from_table(table_of(23, 1), SCHEMA)
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [50, 23, 11]
    seen = [b.row for b in data.table_dataloader(data.train)]
    assert torch.equal(torch.cat(seen), torch.arange(50))
    with pytest.raises(InputError, match="split 'dev'; allowed: train, val, test"):
        data.split("dev")


@pytest.mark.parametrize(("rows", "name"), [((50, 0, 11), "val"), ((50, 23, 0), "test"), ((0, 23, 11), "train")])
def test_an_empty_split_is_named(rows: tuple[int, int, int], name: str) -> None:
    with pytest.raises(InputError, match=f"split '{name}' is empty"):
        Tiny(rows).setup()


def test_own_trial(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    parts = {name: getattr(columns, name) for name in columns.__dataclass_fields__}
    data = TableRCTDataModule(str(path), **parts, batch_size=64, split=[0.5, 0.25, 0.25])
    data.setup()
    assert data.columns == columns
    assert data.schema.treatments == ("none", "low", "high")
    arm, spend = trial["arm"].to_pylist(), trial["spend"].to_pylist()
    trained = set(data.train.user.tolist())
    mine = [i for i, u in enumerate(trial["uid"].to_pylist()) if u in trained]
    for k, name in enumerate(data.schema.treatments):
        mean = np.mean([spend[i] for i in mine if arm[i] == name])
        assert data.statistics.value_mean[k] == pytest.approx(mean, rel=1e-6)
    later = TableRCTDataModule(str(path), **parts, split_seed=9)
    later.use_schema(data.schema)
    later.setup()
    assert later.schema is data.schema


def test_an_arm_that_the_file_lacks(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    parts = {name: getattr(columns, name) for name in columns.__dataclass_fields__}
    data = TableRCTDataModule(str(save(trial)), **{**parts, "arms": ("none", "low", "high", "huge")})
    with pytest.raises(InputError, match="arm 'huge' has no rows in the training split"):
        data.setup()
