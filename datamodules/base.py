"""What every data set looks like to a trainer."""

from __future__ import annotations

import lightning as L
import torch
import torch.distributed as dist

from datamodules.batching import BatchLoader, EvalSampler, TrainSampler
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

SPLITS = ("train", "val", "test")


class RCTDataModule(L.LightningDataModule):
    """A randomized trial in three splits; a subclass supplies :meth:`load`.

    Args:
        batch_size: rows of a training batch, over all processes together.
        eval_batch_size: the same for evaluation and prediction.
        num_workers: processes per rank that collate ahead.
        seed: names the order of training batches.
        pin_memory: page-locked batches; ``None``: where a CUDA device is present.

    Attributes:
        schema, statistics: names and kinds, and moments of the training split; after :meth:`setup`.
        train, val, test: the splits; after :meth:`setup`.
    """

    schema: DataSchema
    statistics: DataStatistics
    train: RCTTable
    val: RCTTable
    test: RCTTable

    def __init__(
        self,
        batch_size: int = 4096,
        eval_batch_size: int = 16_384,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._loaded = False

    def load(self) -> tuple[dict[str, RCTTable], DataSchema]:
        """The splits ``train``, ``val`` and ``test``, and their schema; called once in every process."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, whatever the stage; later calls return at once.

        Raises:
            InputError: if a split is empty or the training split lacks an arm.
        """
        if self._loaded:
            return
        splits, schema = self.load()
        for name in SPLITS:
            if len(splits[name]) == 0:
                counts = ", ".join(f"{len(splits[s]):,} {s}" for s in SPLITS)
                raise InputError(
                    f"split {name!r} is empty ({counts} rows)",
                    "at least one row per split",
                    "give it a larger share, or bring more rows",
                )
        self.schema, self.statistics = schema, DataStatistics.from_table(splits["train"], schema)
        self.train, self.val, self.test = (splits[name] for name in SPLITS)
        self._loaded = True

    def split(self, name: str) -> RCTTable:
        """The split ``train``, ``val`` or ``test``.

        Raises:
            InputError: for another name.
        """
        if name not in SPLITS:
            raise InputError(f"split {name!r}", ", ".join(SPLITS), "name one of them")
        self.setup()
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def train_dataloader(self) -> BatchLoader:
        """Shuffled anew every epoch, the same global batches for any number of processes."""
        rank, world_size = self._place()
        table = self.split("train")
        return self._loader(table, TrainSampler(len(table), self.batch_size, rank, world_size, self.seed))

    def val_dataloader(self) -> BatchLoader:
        """The split ``val`` in evaluation order."""
        return self.table_dataloader(self.split("val"))

    def test_dataloader(self) -> BatchLoader:
        """The split ``test`` in evaluation order."""
        return self.table_dataloader(self.split("test"))

    def table_dataloader(self, table: RCTTable) -> BatchLoader:
        """Any table in evaluation order: every row once over all ranks, filling marked by ``row`` −1."""
        rank, world_size = self._place()
        return self._loader(table, EvalSampler(len(table), self.eval_batch_size, rank, world_size))

    def _loader(self, table: RCTTable, sampler: TrainSampler | EvalSampler) -> BatchLoader:
        return BatchLoader(table, sampler, self.num_workers, self.pin_memory)

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes: the trainer's, else those of ``torch.distributed``, else 0 of 1."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1
