"""Short runs with the objective, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from training_runs import small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.estimators import GradientEstimator, Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.budgets import Budgets, FixedBudgets
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source
from lightning_budget.training.objective.targets import Targets

EPOCH = 8
"""Steps of one."""
BUDGETS = (0.1, 0.4)


def objective(
    estimator: GradientEstimator | None = None,
    form: GoalForm | None = None,
    budgets: Budgets | None = None,
    multipliers: tuple[float, ...] | None = None,
    source: Source | None = None,
    schedule: Schedule | None = None,
    **more: Any,
) -> BudgetObjective:
    """Softmax at two budgets, of weight 2 after one epoch, but for what is given."""
    return BudgetObjective(
        BudgetRegularizer(estimator or Softmax(1.0), form),
        Targets(budgets or FixedBudgets(BUDGETS), multipliers),
        schedule or Schedule(weight=2.0, warm_start_epochs=1),
        source,
        **more,
    )


class Notes(Logger):
    """Every number that was logged under ``objective/``, by name without it and step."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[tuple[str, int], float] = {}

    name = property(lambda self: "notes")  # type: ignore[assignment]
    version = property(lambda self: 0)  # type: ignore[assignment]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Of no interest."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for name, x in metrics.items():
            if name.startswith("objective/"):
                key = name.removeprefix("objective/"), step
                assert key not in self.numbers, f"{key} is logged twice"
                self.numbers[key] = x

    def of(self, name: str) -> dict[int, float]:
        """One number by step."""
        return {step: x for (what, step), x in self.numbers.items() if what == name}


@dataclass
class Step:
    """What was seen at a step: predictions of the whole split before it, of its batch, and what was in force at it."""

    whole: ResponsePrediction | None
    batch: RCTBatch
    prediction: ResponsePrediction
    state: dict[str, Tensor] | None = None
    refreshes: int = 0
    loss: float = 0.0


@dataclass
class Spy(L.Callback):
    """Looks on; must stand before the objective, so that it predicts what the objective will predict."""

    objective: BudgetObjective | None = None
    predicts: bool = False
    steps: dict[int, Step] = field(default_factory=dict)
    _whole: ResponsePrediction | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.objective_terms.setdefault("spy", self._see)
        self._trainer = trainer
        if self.predicts:
            table = trainer.datamodule.train
            pl_module.eval()
            with torch.no_grad():
                self._whole = pl_module(table.batch(torch.arange(len(table)))).detach()
            pl_module.train()

    def _see(self, batch: RCTBatch, prediction: ResponsePrediction) -> None:
        self.steps[self._trainer.global_step] = Step(self._whole, batch, prediction.detach())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = self.steps[trainer.global_step - 1]
        step.loss = float(trainer.strategy.reduce(outputs["loss"].detach().clone()))
        if self.objective is not None and self.objective.state is not None:
            step.state = self.objective.state.tensors()
            step.refreshes = self.objective._refreshes

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.objective_terms.pop("spy", None)


class SaveAfter(L.Callback):
    """``<step>.ckpt`` after each of these many steps."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@dataclass
class Run:
    """A finished run."""

    module: BudgetModule
    data: CampaignDataModule
    notes: Notes
    spy: Spy
    trainer: L.Trainer


def fit(
    folder: Path,
    callback: BudgetObjective | None = None,
    extra: Sequence[L.Callback] = (),
    resume: Path | None = None,
    module: dict[str, Any] | None = None,
    predicts: bool = False,
    **trainer: Any,
) -> Run:
    """Three epochs of eight steps, each logged; with fresh data, model and trainer."""
    data, notes, spy = small_data(), Notes(), Spy(callback, predicts)
    callbacks = [spy, *([callback] if callback else []), *extra]
    settings = {"max_epochs": 3, "limit_val_batches": 0, "logger": notes, "log_every_n_steps": 1, **trainer}
    made, fitting = small_module(data, **(module or {})), small_trainer(folder, callbacks, **settings)
    fitting.fit(made, data, ckpt_path=None if resume is None else str(resume))
    return Run(made, data, notes, spy, fitting)


def assert_same(a: Any, b: Any, where: str = "state", **tolerance: float) -> None:
    """Equal structure and tensors, to the last bit unless told otherwise; NaN equals NaN."""
    if isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key in b:
            assert_same(a[key], b[key], f"{where}.{key}", **tolerance)
    elif isinstance(b, Tensor):
        limits = {"rtol": 0.0, "atol": 0.0, **tolerance}
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m: f"{where}: {m}", **limits)
    else:
        assert a == b, where
