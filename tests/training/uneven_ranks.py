"""One rank of passes over uneven loaders that a test describes: ``python uneven_ranks.py jobs.json``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader
from training_runs import small_data, small_module, small_trainer

from datamodules.batching import BatchLoader, TrainSampler
from lightning_budget.batch import RCTBatch
from lightning_budget.table import RCTTable
from lightning_budget.training.callbacks import AllocationMetrics
from lightning_budget.training.even_batches import EvenBatches, even_batches
from lightning_budget.training.plan import ShardingConfig, TableSharding
from lightning_budget.training.predict import in_table_order
from lightning_budget.training.strategy import TorchRecStrategy

FAILS = -1


class Listed:
    """Batches of the sizes given, of rows that follow each other; the size ``FAILS`` raises."""

    def __init__(self, table: RCTTable, sizes: list[int], start: int) -> None:
        self.table, self.sizes, self.start = table, sizes, start

    def __iter__(self) -> Iterator[Any]:
        row = self.start
        for n in self.sizes:
            if n == FAILS:
                raise OSError(f"row {row} cannot be read")
            yield self.table.batch(torch.arange(row, row + n))
            row += n


class Sized(Listed):
    def __len__(self) -> int:
        return len(self.sizes)


class Columns(Listed):
    """The same as dictionaries, whose rows nobody can cut or mark."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in super().__iter__():
            yield {"row": batch.row}


class Undeclared(BatchLoader):
    """A loader with a state that does not say it is even."""

    even_over_ranks = False


def loader_of(job: dict[str, Any], table: RCTTable, rank: int) -> Listed:
    sizes = job["sizes"]
    start = sum(max(0, n) for earlier in sizes[:rank] for n in earlier)
    kind = {"listed": Listed, "sized": Sized, "columns": Columns}[job["kinds"][rank]]
    return kind(table, sizes[rank], start)


def seen(batch: Any, table: RCTTable) -> list[int]:
    """Row numbers of a batch, whose contents must be those of the table."""
    if isinstance(batch, dict):
        return batch["row"].tolist()
    rows = batch.row.tolist()
    real = [r for r in rows if r >= 0]
    assert rows[: len(real)] == real
    assert_same_batch(batch[: len(real)], table.batch(torch.tensor(real, dtype=torch.int64)))
    # Filling must be something a model can read.
    assert all(x.shape[0] == len(rows) for x in (batch.dense, batch.treatment, batch.value, batch.propensity))
    assert batch.sparse.lengths().numel() == len(rows) * len(batch.sparse.keys())
    assert batch.sparse.values().numel() == int(batch.sparse.lengths().sum())
    return rows


def assert_same_batch(a: RCTBatch, b: RCTBatch) -> None:
    for name in ("dense", "treatment", "value", "cost", "propensity", "row"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.sparse is not None
    assert b.sparse is not None
    assert a.sparse.keys() == b.sparse.keys()
    assert torch.equal(a.sparse.lengths(), b.sparse.lengths())
    assert torch.equal(a.sparse.values(), b.sparse.values())


def step() -> None:
    """What a sharded forward is to the ranks: all of them have to come."""
    dist.all_reduce(torch.zeros(1))


def one_pass(job: dict[str, Any], table: RCTTable, group: dist.ProcessGroup) -> dict[str, Any]:
    """Rows of every step of this rank; ``inner`` is a job that runs in the middle, as validation does in training."""
    loader = even_batches(loader_of(job, table, dist.get_rank()), group, job["training"])
    result: dict[str, Any] = {"steps": [], "evened": isinstance(loader, EvenBatches), "error": None}
    try:
        result["length"] = len(loader)
    except TypeError:
        result["length"] = None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            for i, batch in enumerate(loader):
                result["steps"].append(seen(batch, table))
                step()
                if i == 0 and "inner" in job:
                    result["inner"] = one_pass(job["inner"], table, group)
                if i + 1 == job.get("leave_after"):
                    break
        except RuntimeError as error:
            result["error"] = str(error)
            result["cause"] = repr(error.__cause__)
    result["warnings"] = [str(w.message) for w in told]
    return result


def resumed(job: dict[str, Any], table: RCTTable, group: dist.ProcessGroup) -> dict[str, Any]:
    """Leave a pass after a few steps and go on from its state with another loader."""

    def loader() -> Any:
        sampler = TrainSampler(len(table), job["batch_size"], dist.get_rank(), dist.get_world_size(), seed=1)
        evened = even_batches(Undeclared(table, sampler), group, training=True)
        evened.sampler.set_epoch(2)
        return evened

    whole = [seen(batch, table) for batch in loader()]
    first = loader()
    batches = iter(first)
    steps = [seen(next(batches), table) for _ in range(job["leave_after"])]
    second, state = loader(), first.state_dict()
    second.load_state_dict(state)
    steps += [seen(batch, table) for batch in second]
    return {"whole": whole, "steps": steps, "state": state, "end": second.state_dict()}


def wrapping(job: dict[str, Any], table: RCTTable, group: dist.ProcessGroup) -> dict[str, Any]:
    """What is wrapped, and what the trainer sees of it."""
    alone = [cast(dist.ProcessGroup, dist.new_group([r], backend="gloo")) for r in range(dist.get_world_size())]
    plain, sampler = Listed(table, [2], 0), TrainSampler(len(table), 128)
    even, undeclared = BatchLoader(table, sampler), Undeclared(table, sampler)
    numbers = torch.arange(4)
    recording = _IndexBatchSamplerWrapper(BatchSampler(range(4), 2, drop_last=False))
    recorded = DataLoader(numbers, batch_sampler=recording)  # type: ignore[arg-type]  # as Lightning does
    once, stateful = even_batches(plain, group, True), even_batches(undeclared, group, True)
    again = even_batches(once, group, False)
    loader = DataLoader(numbers)
    evened = even_batches(loader, group, False)
    return {
        "even": "itself" if even_batches(even, group, True) is even else "wrapped",
        "one process": "itself" if even_batches(plain, alone[dist.get_rank()], True) is plain else "wrapped",
        "twice": "once" if again.loader is plain and not again.training else "twice",
        "state": [isinstance(x, _Stateful) for x in (once, stateful)],
        "samplers": "those of the loader"
        if stateful.sampler is sampler
        and evened.sampler is loader.sampler
        and evened.batch_sampler is loader.batch_sampler
        else "others",
        "recording sampler": "hidden" if even_batches(recorded, group, False).batch_sampler is None else "shown",
    }


class Steps(L.Callback):
    """Sizes of the training batches, and how many batches each validation had."""

    def __init__(self) -> None:
        self.train: list[int] = []
        self.validation: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(len(batch))

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.validation.append(0)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.validation[-1] += 1


def lightning(job: dict[str, Any], table: RCTTable, group: dist.ProcessGroup) -> dict[str, Any]:
    """Fit, validate and predict with row-wise sharded tables, for which every step must be that of all ranks."""
    rank, data = dist.get_rank(), small_data()
    module, steps = small_module(data), Steps()
    even_validation = data.val_dataloader

    def loader(split: str) -> Listed:
        return loader_of({"sizes": job[split], "kinds": ["sized"] * 2}, data.split(split), rank)

    data.train_dataloader = lambda: loader("train")  # type: ignore[method-assign]
    data.val_dataloader = lambda: loader("val")  # type: ignore[method-assign]
    trainer = small_trainer(
        Path(job["folder"]),
        [steps, AllocationMetrics(budgets=(0.2, 0.5))],
        strategy=TorchRecStrategy(sharding=ShardingConfig(TableSharding(["row_wise"])), process_group_backend="gloo"),
        devices=2,
        max_epochs=2,
        num_sanity_val_steps=1,
        val_check_interval=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
        result: dict[str, Any] = {"train": steps.train, "validation": steps.validation}
        result["uneven"] = trainer.validate(module, data, verbose=False)[0]
        uneven = in_table_order(trainer.predict(module, loader("test")), len(data.test))
        data.val_dataloader = even_validation  # type: ignore[method-assign]
        result["even"] = trainer.validate(module, data, verbose=False)[0]
        even = in_table_order(trainer.predict(module, data.test_dataloader()), len(data.test))
    result["predictions_differ_by"] = float((uneven.value - even.value).abs().max())
    result["predictions_vary_by"] = float(even.value.std())
    return result


def main() -> None:
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(seconds=30)))
    table = small_data().train
    kinds = {"pass": one_pass, "resumed": resumed, "wrapping": wrapping, "lightning": lightning}
    results = [kinds[job.get("do", "pass")](job, table, group) for job in jobs]
    (folder / f"results.{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"]
    main()
