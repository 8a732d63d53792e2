"""Weights of an earlier run to start from."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import lightning as L

from lightning_budget.errors import InputError
from lightning_budget.training.checkpointing import ShardCheckpointing
from lightning_budget.training.export import checkpoint_exists, read_checkpoint
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.module import BudgetModule


def warm_start_path(path: str | Path | None) -> Path | None:
    """Where the checkpoint lies.

    Raises:
        InputError: if no whole checkpoint is there.
    """
    if path is None or checkpoint_exists(path):
        return None if path is None else Path(path)
    raise InputError(
        f"objective.warm_start_ckpt={str(path)!r} is not there",
        "a checkpoint of this library",
        "give the best.ckpt of a two-stage run; a run that is resumed needs none: objective.warm_start_ckpt=null",
    )


def check_warm_start(path: Path, module: BudgetModule) -> None:
    """Refuse a checkpoint that cannot be started from.

    Raises:
        InputError: if it cannot be read, or is of other data or another model.
    """
    try:
        check_same_model(path, module)
    except InputError as error:
        _, (found, allowed, _) = error.__reduce__()
        fix = "give a checkpoint of this run's data and model, or objective.warm_start_ckpt=null"
        raise InputError(f"objective.warm_start_ckpt: {found}", allowed, fix) from error


def load_warm_start(path: Path, trainer: L.Trainer, module: L.LightningModule) -> None:
    """Take over the weights, and nothing else; every rank calls it, after the strategy has laid out the model.

    Args:
        path: checkpoint of either format.

    Raises:
        InputError: as :func:`check_warm_start`.
    """
    check_warm_start(path, cast("BudgetModule", module))
    if isinstance(trainer.strategy, ShardCheckpointing):
        trainer.strategy.load_weights(path)
    else:
        module.load_state_dict(read_checkpoint(path)["state_dict"])
