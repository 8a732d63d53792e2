"""Whole batches cut from a table, the same global batches for any number of processes.

A sampler yields the row numbers of one batch at a time and the loader collates them at once, never row by row::

    global batch    [ 7  2 | 9  4 | 0  5 ]     batch_size 6, world_size 3
    rank              0      1      2
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_budget.batch import RCTBatch
from lightning_budget.errors import InputError
from lightning_budget.table import RCTTable


class BatchSampler(Sampler[Tensor]):
    """One rank's slice of every global batch of an epoch.

    Args:
        rows: N, rows of the table.
        batch_size: rows of a global batch, over all ranks together.
        rank, world_size: which slice of each global batch is ours.

    Attributes:
        epoch: names the epoch's order.
        first: batches to leave out at the front of the next iteration only (for resuming inside an epoch).

    Raises:
        InputError: if ``batch_size`` is not a positive multiple of ``world_size``, or the table is empty.
    """

    def __init__(self, rows: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"global batch size {batch_size} over {world_size} processes",
                f"a positive multiple of {world_size}",
                f"set it to {max(1, round(batch_size / world_size)) * world_size}",
            )
        if rows < 1:
            raise InputError("a table of 0 rows", "at least 1 row", "check the file and the split fractions")
        self.rows, self.batch_size, self.rank, self.world_size = rows, batch_size, rank, world_size
        self.epoch = 0
        self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Row numbers of the epoch, all ranks together; −1 − i is row i as filling."""
        raise NotImplementedError

    def _global_batches(self) -> int:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._global_batches()

    def __iter__(self) -> Iterator[Tensor]:
        first, self.first = self.first, 0
        order = self.order()
        for i in range(first, len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            share = len(batch) // self.world_size
            yield batch[self.rank * share : (self.rank + 1) * share]


class TrainSampler(BatchSampler):
    """A fresh permutation every epoch, a function of ``(seed, epoch)`` alone; the incomplete last batch is dropped.

    A table smaller than one batch gives one batch of the largest multiple of ``world_size`` rows.

    Raises:
        InputError: also if there are fewer rows than processes.
    """

    def __init__(self, rows: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0) -> None:
        super().__init__(rows, batch_size, rank, world_size)
        if rows < world_size:
            raise InputError(
                f"{rows} training rows for {world_size} processes", "a row for every process", "use fewer processes"
            )
        self.batch_size = min(batch_size, rows // world_size * world_size)
        self.seed = seed

    def order(self) -> Tensor:
        """A permutation of all rows."""
        key = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(key))

    def _global_batches(self) -> int:
        return self.rows // self.batch_size


class EvalSampler(BatchSampler):
    """Every row once, in order; the last batch is filled up to a multiple of ``world_size``.

    So all ranks see equally many batches, and batches of equal size: collective operations need both.
    """

    def order(self) -> Tensor:
        """All rows, then the filling."""
        filling = torch.arange(-self.rows % self.world_size) % self.rows
        return torch.cat([torch.arange(self.rows), -1 - filling])

    def _global_batches(self) -> int:
        return -(-self.rows // self.batch_size)


class BatchLoader:
    """Iterates over the :class:`RCTBatch` es that a sampler names, and can resume inside an epoch.

    Args:
        table: rows in memory.
        sampler: which rows make up each batch.
        num_workers: processes that collate ahead of the model; 0 collates in this one.
        pin_memory: collate into page-locked memory, for copies to a GPU that overlap with compute.

    Not a ``DataLoader`` itself: a trainer would put its own distributed sampler into one.
    """

    # The samplers cut global batches into equal slices, so ranks need not agree on each step's batch.
    even_over_ranks = True

    def __init__(self, table: RCTTable, sampler: BatchSampler, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.sampler = sampler
        self.num_workers = num_workers
        self.batch_sampler = None  # Lightning asks for it wherever there is a sampler
        # Workers end with the epoch: kept ones, in the trainer's reference cycles, end five seconds apart or worse.
        self._loader: DataLoader[RCTBatch] = DataLoader(
            _Batches(table), batch_size=None, sampler=sampler, num_workers=num_workers, pin_memory=pin_memory
        )
        self._position = 0
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[RCTBatch]:
        # A generator: the order is drawn at the first batch, after the trainer has set the epoch.
        self._position = self.sampler.first = self._resume_at()
        for batch in self._loader:
            self._position += 1
            yield batch

    def _resume_at(self) -> int:
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != self.sampler.epoch or state["position"] >= state["length"]:
            return 0
        if state["batch_size"] != self.sampler.batch_size:
            raise InputError(
                f"resuming inside an epoch with global batch size {self.sampler.batch_size}",
                f"{state['batch_size']}, as in the checkpoint",
                "restore the batch size, or resume from a checkpoint made at the end of an epoch",
            )
        return state["position"]

    def state_dict(self) -> dict[str, Any]:
        """Where we are, counted in global batches: valid for any number of processes."""
        return {
            "epoch": self.sampler.epoch,
            "position": self._position,
            "length": len(self),
            "batch_size": self.sampler.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches already seen, provided that the trainer sets the same epoch."""
        self._resume = dict(state)


class _Batches(Dataset[RCTBatch]):
    def __init__(self, table: RCTTable) -> None:
        self.table = table

    def __getitem__(self, index: Tensor) -> RCTBatch:  # type: ignore[override]
        return self.table.batch(index)
