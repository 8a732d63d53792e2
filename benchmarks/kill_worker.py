"""A training run to be killed by ``kill_and_resume.py``: rank 0 prints what it is doing and saves often.

``kill_worker.py FOLDER FORMAT``: trains on two ranks from ``FOLDER/last.ckpt`` where there is one.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from datamodules import CampaignDataModule
from lightning_budget.training.export import checkpoint_exists
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.strategy import TorchRecStrategy

EPOCHS, EVERY, STEPS = 30, 3, 240
MODEL = {"name": "tarnet", "embedding_dim": 32, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}


class Diary(L.Callback):
    """Every step's loss over both ranks, and a checkpoint after every few steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # In a file: lines of two ranks may run into each other.
        (self.folder / f"rank{trainer.global_rank}.pid").write_text(str(os.getpid()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"].detach().clone()
        dist.all_reduce(loss)
        step = trainer.global_step
        if trainer.is_global_zero:
            with open(self.folder / "losses.jsonl", "a") as f:
                f.write(json.dumps([step, float(loss)]) + "\n")
            print(f"step {step}", flush=True)
        if step % EVERY == 0:
            if trainer.is_global_zero:
                print(f"saving {step}", flush=True)
            trainer.save_checkpoint(self.folder / "last.ckpt")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
    # A table that takes a while to write.
    data = CampaignDataModule(train_rows=1024, val_rows=64, test_rows=64, users=150_000, batch_size=128)
    data.setup()
    module = BudgetModule(
        data.schema.to_dict(), data.statistics.to_dict(), MODEL, lr=0.01, embedding_lr=0.05, schedule="cosine"
    )
    strategy = TorchRecStrategy(checkpoint=checkpoint)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=EPOCHS,
        callbacks=[Diary(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if checkpoint_exists(last) else None)
    strategy._checkpoint = "full"
    trainer.save_checkpoint(folder / "end.ckpt")
    print("finished", flush=True)


if __name__ == "__main__":
    main()
