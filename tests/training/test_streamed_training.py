"""Training on streamed rows: cut off at any step it goes on to the same end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from training_runs import small_module, small_trainer

from datamodules import ParquetRCTDataModule
from lightning_budget.errors import InputError
from lightning_budget.estimators.softmax import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.objective.credibility import paying_rows, paying_rows_of


class CutOffError(Exception):
    pass


class Diary(L.Callback):
    """Rows and loss of every step; a checkpoint and the end without warning after ``stop``."""

    def __init__(self, path: Path, stop: int | None) -> None:
        self.path, self.stop = path, stop
        self.steps: dict[int, tuple[list[int], float]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.steps[step] = (batch.row.tolist(), float(outputs["loss"]))
        if step == self.stop:
            trainer.save_checkpoint(self.path)
            raise CutOffError


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 rows in row groups of 50."""
    rng, n = np.random.default_rng(0), 500
    arm = rng.integers(0, 2, n)
    table = pa.table(
        {
            "uid": rng.integers(0, 200, n),
            "arm": np.array(["none", "some"])[arm],
            "spend": rng.exponential(1 + arm),
            "paid": arm * rng.random(n),
            "age": rng.standard_normal(n),
            "city": rng.integers(0, 5, n),
        }
    )
    path = tmp_path_factory.mktemp("streamed") / "trial.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=50)
    return path


def streamed(path: Path, **changes: Any) -> ParquetRCTDataModule:
    columns = {"treatment": "arm", "arms": ["none", "some"], "value": "spend", "cost": "paid", "user": "uid"}
    sizes = {"batch_size": 32, "buffer_rows": 100, "cache": None}
    settings = {**columns, "dense": ["age"], "categorical": ["city"], **sizes, **changes}
    data = ParquetRCTDataModule(str(path), **settings)
    data.setup()
    return data


def run(path: Path, checkpoint: Path, stop: int | None = None, resume: bool = False) -> Diary:
    data, diary = streamed(path), Diary(checkpoint, stop)
    objective = BudgetObjective(BudgetRegularizer(Softmax(1.0)))
    trainer = small_trainer(checkpoint.parent, [diary, objective], limit_val_batches=0)
    with contextlib.suppress(CutOffError):
        trainer.fit(small_module(data), data, ckpt_path=str(checkpoint) if resume else None)
    return diary


def test_cut_off_inside_an_epoch(tmp_path: Path, trial: Path) -> None:
    whole = run(trial, tmp_path / "a.ckpt")
    steps = len(whole.steps) // 2
    rows = [r for i in range(1, steps + 1) for r in whole.steps[i][0]]
    assert sorted(rows) == list(range(len(rows)))
    parts = [run(trial, tmp_path / "a.ckpt", stop=4), run(trial, tmp_path / "a.ckpt", steps + 3, True)]
    parts.append(run(trial, tmp_path / "a.ckpt", None, True))
    seen: dict[int, tuple[list[int], float]] = {}
    for part in parts:
        assert not seen.keys() & part.steps.keys()
        seen |= part.steps
    assert seen == whole.steps


def test_folds_of_rows_that_are_not_in_memory(tmp_path: Path, trial: Path) -> None:
    data = streamed(trial, sample_rows=50)
    objective = BudgetObjective(
        BudgetRegularizer(Softmax(1.0), GoalForm(weighting="doubly_robust")), outcome_model="cross_fitted"
    )
    with pytest.raises(InputError, match=r"cross_fitted with .* rows in memory of a larger training split"):
        small_trainer(tmp_path, [objective], limit_val_batches=0).fit(small_module(data), data)


def test_paying_rows_are_those_of_the_whole_split(trial: Path) -> None:
    sample, whole = (streamed(trial, sample_rows=rows) for rows in (100, 1_000))
    assert sample.train_is_sample
    assert not whole.train_is_sample
    assert paying_rows_of(sample) == pytest.approx(paying_rows_of(whole), rel=0.2)
    assert paying_rows(sample.train) < paying_rows(whole.train) / 2
