"""Early stopping that knows which epochs compete."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from lightning_budget.training.selection import first_candidate


class SecondHalfStopping(EarlyStopping):
    """Lightning's early stopping, counting from the first epoch whose checkpoint may be selected.

    Counting from the start would end a run on the strength of epochs that
    :func:`~lightning_budget.training.selection.first_candidate` leaves out. Arguments as Lightning's.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= first_candidate(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= first_candidate(trainer):
            super().on_train_epoch_end(trainer, pl_module)
