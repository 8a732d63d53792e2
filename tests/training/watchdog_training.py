"""A training script that Lightning's launcher starts on every rank: ``watchdog_training.py {raise,kill} RANK``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_budget.training.strategy import TorchRecStrategy


class Trouble(L.Callback):
    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        what, rank = sys.argv[1], int(sys.argv[2])
        if trainer.current_epoch == 1 and trainer.global_rank == rank:
            print(f"rank {rank} in trouble", flush=True)
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("bad luck")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=TorchRecStrategy(),
        max_epochs=3,
        limit_train_batches=3,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        callbacks=[Trouble()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    print("done")
