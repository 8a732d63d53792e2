"""One training run of a comparison: fit, keep the best and the last checkpoint, predict with the best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from lightning_budget.atomic import atomic_path
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.table import RCTTable
from lightning_budget.training.data import TrialData
from lightning_budget.training.export import checkpoint_exists
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.predict import Part, in_table_order
from lightning_budget.training.selection import first_candidate

DONE = "done.json"


@dataclass(frozen=True)
class Phase:
    """Where a phase keeps its files.

    Attributes:
        name: ``two_stage`` or ``end_to_end``.
        folder: ``<run folder>/<name>``.
    """

    name: str
    folder: Path

    @property
    def best(self) -> Path:
        """Checkpoint with the best validation metric among the epochs that compete, those of the second half."""
        return self.folder / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint of the last finished epoch, to resume from."""
        return self.folder / "last.ckpt"

    @property
    def is_done(self) -> bool:
        """Whether the phase ran to its end."""
        return (self.folder / DONE).is_file()


class _Checkpoint(ModelCheckpoint):
    """Lightning's forgets the best score when the run folder has moved, and would then keep a worse checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old, new = state_dict["dirpath"], str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(new) / Path(path).relative_to(old)) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        state |= {key: moved(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


class _Best(_Checkpoint):
    """The best of the epochs that compete; until one does, the best so far, for a run that is cut off before."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == first_candidate(trainer):
            self.best_k_models = {}
            self.best_model_path = self.kth_best_model_path = ""
            self.best_model_score = None
            self.kth_value = torch.tensor(-torch.inf)
        super().on_train_epoch_end(trainer, pl_module)


def checkpoints(phase: Phase, monitor: str) -> list[ModelCheckpoint]:
    """The best and the last checkpoint, under fixed names, each replaced in one step after every epoch."""
    common: dict[str, Any] = {
        "dirpath": phase.folder,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = _Best(filename="best", monitor=monitor, mode="max", save_top_k=1, **common)
    # Monitored by the epoch, so that one file is kept and it is the newest.
    last = _Checkpoint(filename="last", monitor="epoch", mode="max", save_top_k=1, **common)
    return [best, last]


def build_trainer(arguments: dict[str, Any], **extra: Any) -> L.Trainer:
    """Lightning's Trainer.

    Raises:
        InputError: if Lightning refuses the arguments.
    """
    try:
        return L.Trainer(**{**arguments, **extra})
    except (MisconfigurationException, ValueError, TypeError) as e:
        raise InputError(f"trainer: {e}", "arguments that fit this machine", "mend the trainer.* override") from e


def fit_phase(
    phase: Phase,
    module: BudgetModule,
    datamodule: TrialData,
    trainer_arguments: dict[str, Any],
    callbacks: Sequence[L.Callback],
    loggers: Sequence[Logger],
    monitor: str,
) -> L.Trainer:
    """Train a phase to its end, from its last checkpoint where there is one.

    Args:
        phase: names and folder.
        module: freshly built; datamodule: set up.
        trainer_arguments: of Lightning's Trainer, with a strategy of this phase alone.
        callbacks, loggers: instances of this phase alone.
        monitor: metric to select by, the larger the better.

    Returns:
        The trainer, for predictions on the same ranks.

    Raises:
        InputError: if Lightning refuses the trainer's arguments, or the last checkpoint belongs to another model.
    """
    trainer = build_trainer(
        trainer_arguments,
        callbacks=[*callbacks, *checkpoints(phase, monitor)],
        logger=list(loggers),
        default_root_dir=str(phase.folder),
    )
    if phase.is_done:
        return trainer
    resume = None
    if checkpoint_exists(phase.last):
        check_same_model(phase.last, module)
        resume = str(phase.last)
    trainer.fit(module, cast(L.LightningDataModule, datamodule), ckpt_path=resume)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        with atomic_path(phase.folder / DONE) as path:
            path.write_text(json.dumps({"epochs": trainer.current_epoch, "steps": trainer.global_step}))
    return trainer


def predict_best(
    phase: Phase, trainer: L.Trainer, module: BudgetModule, datamodule: TrialData, table: RCTTable
) -> ResponsePrediction:
    """Predict a table with the phase's best checkpoint, over all ranks; ``[N, K]`` each, on every rank."""
    batches = datamodule.table_dataloader(table)
    parts = trainer.predict(module, dataloaders=batches, ckpt_path=str(phase.best))
    return in_table_order(cast("list[Part]", parts), len(table))
