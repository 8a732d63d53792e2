"""One rank of runs that a test describes as JSON: ``python rank_worker.py jobs.json``, see ``distributed_runs``.

Several jobs follow each other in one process, because importing costs more than training.
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
from training_runs import small_data, small_module, small_trainer

from lightning_budget.training.plan import ShardingConfig, TableSharding
from lightning_budget.training.strategy import TorchRecStrategy


class Losses(L.Callback):
    """The loss of every step, averaged over ranks."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = trainer.strategy.reduce(outputs["loss"].detach().clone())
        self.losses[trainer.global_step - 1] = float(loss)


class SaveAt(L.Callback):
    """A checkpoint after so many steps, in the middle of an epoch, and the end of training there."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            # Goes on for a step, so that what is saved asynchronously changes meanwhile.
        if trainer.global_step == self.step + 1:
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True


def run_job(job: dict[str, Any]) -> None:
    data = small_data()
    module = small_module(data, **job.get("module", {}))
    columns = 4 if job["types"] == ["column_wise"] else None
    sharding = ShardingConfig(
        TableSharding(job["types"], min_columns=columns), plan=job.get("plan"), ddr_gib=job.get("ddr_gib")
    )
    strategy = TorchRecStrategy(
        sharding=sharding,
        checkpoint=job.get("format", "full"),
        plan_file=job.get("plan_file"),
    )
    losses = Losses()
    callbacks: list[L.Callback] = [losses]
    if "save_at" in job:
        callbacks.append(SaveAt(job["save_at"], job["checkpoint"]))
    trainer = small_trainer(
        Path(job["folder"]),
        callbacks,
        strategy=strategy,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        limit_val_batches=0,
        accelerator=job.get("accelerator", "cpu"),
    )
    trainer.fit(module, data, ckpt_path=job.get("resume"))
    if "result" in job:
        # Whole tensors, whatever the format under test.
        strategy._checkpoint = "full"
        trainer.save_checkpoint(job["result"])
    if dist.get_rank() == 0:
        (Path(job["folder"]) / f"{job['name']}.losses.json").write_text(json.dumps(losses.losses))


def main() -> None:
    warnings.simplefilter("ignore")
    for job in json.loads(Path(sys.argv[1]).read_text()):
        print(f"rank {os.environ['RANK']}: {job['name']}", flush=True)
        run_job(job)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
