"""One rank of runs with and without ids sent ahead, described as JSON: ``python pipeline_ranks.py jobs.json``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from rank_worker import Losses, SaveAt
from torchrec.distributed.types import ShardedModule
from training_runs import small_data, small_module, small_trainer

from lightning_budget.batch import RCTBatch
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.budgets import FixedBudgets
from lightning_budget.training import pipeline
from lightning_budget.training.callbacks import AllocationMetrics, BudgetObjective
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.targets import Targets
from lightning_budget.training.pipeline import _Sent
from lightning_budget.training.plan import ShardingConfig, TableSharding
from lightning_budget.training.strategy import TorchRecStrategy


class Unsized:
    """A loader that does not say how many batches it has, so that the trainer asks for one more than it needs."""

    def __init__(self, loader: Any, first: int | None) -> None:
        self.loader, self.sampler, self.batch_sampler, self.first = loader, loader.sampler, None, first

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.first)


class Rows(L.Callback):
    """Rows of every step."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append(batch.row.tolist())


class Glances(L.Callback):
    """Predicts other rows when a batch is at hand and the next is under way."""

    def __init__(self, batch: RCTBatch) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.eval()
        with torch.no_grad():
            pl_module(self.batch)
        pl_module.train()


events: list[str] = []
"""What happened to ids sent ahead, numbered as they were sent: ``send 3``, ``follow 3``, ``take 3``."""


class Traced(_Sent):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.number = sum(e.startswith("send") for e in events)
        events.append(f"send {self.number}")

    def follow(self) -> None:
        if self._ids is None:
            events.append(f"follow {self.number}")
        super().follow()

    def arrive(self) -> Any:
        events.append(f"take {self.number}")
        return super().arrive()


def attached(module: torch.nn.Module) -> list[str]:
    """Collections whose forward is not their own."""
    parts = [(name, part) for name, part in module.named_modules() if isinstance(part, ShardedModule)]
    assert parts
    return [name for name, part in parts if "forward" in vars(part)]


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    data = small_data()
    module = small_module(data)
    if "unsized" in job:
        loader, first = data.train_dataloader, job["unsized"] and job["unsized"][int(os.environ["RANK"])]
        data.train_dataloader = lambda: Unsized(loader(), first)  # type: ignore[method-assign]
    strategy = TorchRecStrategy(
        pipeline=job["pipeline"],
        sharding=ShardingConfig(TableSharding(["table_wise"]), {"user_id": TableSharding(["row_wise"])}),
        process_group_backend="gloo",
    )
    losses, rows = Losses(), Rows()
    callbacks: list[L.Callback] = [losses, rows, AllocationMetrics(budgets=(0.2, 0.5))]
    callbacks.append(Glances(data.val.batch(torch.arange(8))))
    targets, schedule = Targets(FixedBudgets((0.1, 0.4))), Schedule(weight=2.0, warm_start_epochs=1)
    callbacks.append(BudgetObjective(BudgetRegularizer(Softmax(1.0)), targets, schedule))
    if "save_at" in job:
        callbacks.append(SaveAt(job["save_at"], job["checkpoint"]))
    trainer = small_trainer(
        Path(job["folder"]),
        callbacks,
        strategy=strategy,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_sanity_val_steps=1,
        **{"val_check_interval": 3, **job.get("trainer", {})},
    )
    events.clear()
    trainer.fit(module, data, ckpt_path=job.get("resume"))
    if "then_epochs" in job:
        trainer.fit_loop.max_epochs = job["then_epochs"]
        trainer.fit(module, data)
    left = attached(module)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    trainer.save_checkpoint(job["result"])
    return {
        "losses": list(losses.losses.values()),
        "rows": rows.rows,
        "metrics": metrics,
        "events": list(events),
        "attached": left,
    }


def main() -> None:
    warnings.simplefilter("ignore")
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent
    results = {}
    pipeline._Sent = Traced
    for job in jobs:
        print(f"rank {os.environ['RANK']}: {job['name']}", flush=True)
        results[job["name"]] = run_job(job)
    (folder / f"results.{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
