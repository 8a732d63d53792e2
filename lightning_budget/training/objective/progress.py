"""How far a run is, in epochs."""

from __future__ import annotations

import math

import lightning as L


def epochs_done(trainer: L.Trainer, batch_idx: int) -> float:
    """Before batch ``batch_idx`` of the current epoch; whole epochs alone where their length is not known."""
    return trainer.current_epoch + batch_idx / trainer.num_training_batches


def epochs_of_run(trainer: L.Trainer) -> float:
    """From the trainer's limits; infinite where none can be told in epochs."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs)  # type: ignore[arg-type]
    if trainer.max_steps != -1 and math.isfinite(trainer.num_training_batches):
        epochs = min(epochs, trainer.max_steps / trainer.num_training_batches)
    return epochs
