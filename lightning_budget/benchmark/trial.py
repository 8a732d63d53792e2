"""One trial: a training with settings of its own, in this process, and what it says on validation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.cli.composed import Config
from lightning_budget.cli.recipe import build_recipe
from lightning_budget.losses.budgets import budget_grid
from lightning_budget.metrics.functional import eom_hajek
from lightning_budget.table import RCTTable
from lightning_budget.training.comparison import END_TO_END, TWO_STAGE, check_recipe
from lightning_budget.training.data import TrialData
from lightning_budget.training.export import load_model
from lightning_budget.training.phase import Phase, fit_phase
from lightning_budget.training.predict import predict_batches


@dataclass(frozen=True)
class Fit:
    """What a training took.

    Attributes:
        epochs: trained; seconds, cpu_seconds: of it, on the wall and of the processor; parameters: fitted, those of
            embedding tables among them.
    """

    epochs: int
    seconds: float
    cpu_seconds: float
    parameters: int


Fitter = Callable[[Config, TrialData, Path], Fit]
"""Trains by a config, with the splits train and val, and leaves in the folder what :data:`Predictor` reads."""

Predictor = Callable[[TrialData, RCTTable, Path], ResponsePrediction]
"""Predicts a table with what a training left."""


def fit_network(config: Config, datamodule: TrialData, folder: Path) -> Fit:
    """Train as ``scripts/train.py`` does: the phase with the goal, or prediction alone where there is none.

    Raises:
        InputError: if the training cannot be built, or is left by numbers that are not finite.
    """
    recipe = build_recipe(config, datamodule)  # type: ignore[arg-type]
    phase = Phase(TWO_STAGE if recipe.objective is None else END_TO_END, folder)
    module = recipe.module()
    callbacks = list(recipe.callbacks(phase.name))
    if recipe.objective is not None:
        callbacks.append(recipe.objective())
    arguments = {**recipe.trainer, "strategy": recipe.strategy(None)}
    check_recipe(recipe, datamodule, baseline=False)
    start, start_cpu = time.perf_counter(), time.process_time()
    trainer = fit_phase(phase, module, datamodule, arguments, callbacks, [], recipe.monitor)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    phase.last.unlink(missing_ok=True)
    parameters = sum(p.numel() for p in module.parameters())
    return Fit(trainer.current_epoch, seconds, cpu_seconds, parameters)


def predict_network(datamodule: TrialData, table: RCTTable, folder: Path) -> ResponsePrediction:
    """``[N, K]`` each, with the checkpoint that training selected on validation."""
    model = load_model(folder / "best.ckpt")

    class OfBatch(torch.nn.Module):
        def forward(self, batch: RCTBatch) -> ResponsePrediction:
            return model(batch.dense, batch.sparse)

    return predict_batches(OfBatch(), datamodule.table_dataloader(table), len(table), torch.device("cpu"))


def validation_score(datamodule: TrialData, prediction: ResponsePrediction, fractions: tuple[float, ...]) -> float:
    """EOM (Hájek) on validation, mean over budgets: what training monitors and trials are compared by."""
    table, budgets = datamodule.val, budget_grid(fractions, datamodule.statistics.free_spend)
    logged = (table.treatment, table.value, table.cost, table.propensity)
    point = eom_hajek(prediction.value, prediction.cost, *logged, budgets=budgets, weight=table.weight)
    return float(point.value.mean())
