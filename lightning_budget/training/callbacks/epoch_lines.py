"""One line per epoch, for people and for logs."""

from __future__ import annotations

import time

import lightning as L


class EpochLines(L.Callback):
    """Print losses and the monitored metric after every epoch.

    Args:
        title: what is being trained.
        monitor: name of the metric that selects the checkpoint.
    """

    def __init__(self, title: str = "training", monitor: str = "val/eom_hajek") -> None:
        self.title, self.monitor = title, monitor
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        parts = [f"{self.title} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        named = (("loss", "train/prediction_loss_epoch"), ("goal", "train/goal_epoch"), (self.monitor, self.monitor))
        parts += [f"{label} {float(metrics[key]):.4f}" for label, key in named if key in metrics]
        parts.append(f"{time.monotonic() - self._start:.1f} s")
        pl_module.print("  ".join(parts))
