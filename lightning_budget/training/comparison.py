"""Two-stage and end-to-end under equal conditions: same start, epochs, batches and selection rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, WandbLogger

from lightning_budget.batch import ResponsePrediction
from lightning_budget.models.registry import build_model
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.data import TrialData
from lightning_budget.training.export import checkpoint_exists
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.warm_start import check_warm_start
from lightning_budget.training.optimizers import step_in_backward
from lightning_budget.training.phase import Phase, build_trainer, fit_phase, predict_best
from lightning_budget.training.strategy import TorchRecStrategy

TWO_STAGE, END_TO_END = "two_stage", "end_to_end"
PLAN = "plan.json"


@dataclass(frozen=True)
class Recipe:
    """Everything a phase is built from; called anew for each, so that phases share no state.

    Attributes:
        module: the untrained module.
        callbacks: all but the objective and the checkpoints, for a phase name.
        objective: the budget objective, or ``None`` for two-stage training alone.
        loggers: for a phase.
        strategy: builds the strategy, given where it writes its sharding plan (``None``: nowhere).
        trainer: the other arguments of Lightning's Trainer.
        monitor: metric that selects the checkpoint from the second half of the epochs, the larger the better.
    """

    module: Callable[[], BudgetModule]
    callbacks: Callable[[str], Sequence[L.Callback]]
    objective: Callable[[], BudgetObjective] | None
    loggers: Callable[[Phase], Sequence[Logger]]
    strategy: Callable[[Path | None], TorchRecStrategy]
    trainer: dict[str, Any]
    monitor: str


def phase_names(recipe: Recipe, baseline: bool) -> list[str]:
    """Which phases a run has, in order."""
    if recipe.objective is None:
        return [TWO_STAGE]
    return [TWO_STAGE, END_TO_END] if baseline else [END_TO_END]


def check_recipe(recipe: Recipe, datamodule: TrialData, baseline: bool = True, folder: Path | None = None) -> None:
    """Refuse, before anything is written, what would only fail once its phase is reached.

    Args:
        recipe: of the run; datamodule: set up; baseline: as :func:`run_comparison`.
        folder: of the run to resume.

    Raises:
        InputError: for any part that cannot be built, or checkpoints of another model.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    strategy = recipe.strategy(None)
    trainer = build_trainer(recipe.trainer, strategy=strategy, **quiet)
    strategy.refuse_what_in_backward_cannot_do(trainer)
    module = recipe.module()
    # Described alone: tables may be larger than this process.
    described = build_model(module.hparams["model"], module.schema, module.statistics, "meta")
    module.prediction_loss.check(described, objective=recipe.objective is not None)
    if described.sparse_arch is not None:
        step_in_backward(described.sparse_arch, 1.0, module.hparams["embedding_optimizer"])
        strategy.refuse_what_cannot_be_laid_out(described)
    if recipe.objective is not None and (start := recipe.objective().warm_start_ckpt) is not None and folder is None:
        check_warm_start(start, module)
    datamodule.train_dataloader()
    if folder is None:
        return
    for name in phase_names(recipe, baseline):
        phase = Phase(name, folder / name)
        for path in (phase.last, phase.best):
            if checkpoint_exists(path):
                check_same_model(path, module)


def run_comparison(
    recipe: Recipe, datamodule: TrialData, folder: Path, baseline: bool = True
) -> tuple[dict[str, ResponsePrediction], L.Trainer]:
    """Train every phase, resuming what an earlier process left, and predict the test split with each best checkpoint.

    Args:
        recipe: how to build a phase.
        datamodule: set up.
        folder: of the run; each phase gets a folder in it.
        baseline: train the two-stage model too.

    Returns:
        Predictions of the test split by phase, on every rank, and the last trainer.
    """
    predictions: dict[str, ResponsePrediction] = {}
    trainer = None
    for name in phase_names(recipe, baseline):
        if trainer is not None:
            close_loggers(trainer.loggers)
        phase = Phase(name, folder / name)
        module = recipe.module()
        callbacks = list(recipe.callbacks(name))
        if name == END_TO_END:
            assert recipe.objective is not None
            callbacks.append(recipe.objective())
        loggers = [] if phase.is_done else recipe.loggers(phase)
        arguments = {**recipe.trainer, "strategy": recipe.strategy(phase.folder / PLAN)}
        trainer = fit_phase(phase, module, datamodule, arguments, callbacks, loggers, recipe.monitor)
        predictions[name] = predict_best(phase, trainer, module, datamodule, datamodule.split("test"))
    assert trainer is not None
    return predictions, trainer


def close_loggers(loggers: Sequence[Logger]) -> None:
    """End W&B runs: a new one in the same process would continue the old one."""
    for logger in loggers:
        # Off rank 0 the experiment is a stand-in that takes any call.
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def log_report(loggers: Sequence[Logger], numbers: dict[str, float], pictures: Sequence[Path]) -> None:
    """Add a finished comparison to the loggers of a run."""
    for logger in loggers:
        logger.log_metrics(numbers)
        if isinstance(logger, WandbLogger):
            logger.log_image("report", [str(p) for p in pictures])
