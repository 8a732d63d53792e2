"""Shuffled batches of a training split larger than memory, resumed inside an epoch without reading it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_budget.batch import RCTBatch
from lightning_budget.data.stream.windows import TrainingStream
from lightning_budget.errors import InputError


class EpochSampler:
    """Where a trainer sets the epoch.

    Attributes:
        epoch: names the epoch's order.
    """

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch


class StreamLoader:
    """Iterates over a rank's :class:`RCTBatch` es of a stream, and can resume inside an epoch.

    Every training row comes once an epoch, but for fewer rows than there are ranks; the last batch is smaller where the
    rows do not fill it. All ranks make equally many batches of the same sizes. The order depends on the numbers of
    ranks and of workers too.

    Args:
        stream: the rows, with a plan of any epoch.
        num_workers: processes that read and collate; 0 reads ahead on a thread of this one.
        pin_memory: collate into page-locked memory.
    """

    even_over_ranks = True

    def __init__(self, stream: TrainingStream, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.stream, self.num_workers, self.pin_memory = stream, num_workers, pin_memory
        self.sampler = EpochSampler()
        self.batch_sampler = None  # Lightning asks for it wherever there is a sampler
        self._position = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.stream.plan.batches

    def __iter__(self) -> Iterator[RCTBatch]:
        # A generator: the order is drawn at the first batch, after the trainer has set the epoch.
        self._position = self._resume_at()
        stream = replace(self.stream, plan=replace(self.stream.plan, epoch=self.sampler.epoch))
        batches = _Batches(stream, self._position)
        # A new one every epoch: its processes start with the epoch and the place to begin from.
        loader = DataLoader(batches, batch_size=None, num_workers=self.num_workers, pin_memory=self.pin_memory)
        for batch in loader if self.num_workers or self.pin_memory else batches:
            if isinstance(batch, InputError):
                raise batch
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where we are, and what decides the order; the same on every rank."""
        return {"epoch": self.sampler.epoch, "position": self._position, "length": len(self)} | self._order()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches already seen, provided that the trainer sets the same epoch."""
        self._resume = dict(state)

    def _order(self) -> dict[str, Any]:
        plan = self.stream.plan
        return {
            "batch_size": plan.batch_rows * plan.ranks,
            "ranks": plan.ranks,
            "num_workers": self.num_workers,
            "buffer_rows": plan.buffer_rows,
            "seed": plan.seed,
            "data": self.stream.trial.key,
        }

    def _resume_at(self) -> int:
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != self.sampler.epoch or state["position"] >= state["length"]:
            return 0
        for name, ours in self._order().items():
            if (theirs := state.get(name)) != ours:
                what = "other files or columns" if name == "data" else f"{name}={ours}"
                raise InputError(
                    f"resuming inside an epoch of streamed rows with {what}",
                    "those of the checkpoint" if name == "data" else f"{theirs}, as in the checkpoint",
                    "restore them, or resume from a checkpoint made at the end of an epoch",
                )
        return state["position"]


@dataclass(frozen=True)
class _Batches(IterableDataset[RCTBatch | InputError]):
    """The batches from ``first`` on; a process of a loader makes every so-manieth of them.

    Bad input is handed over like a batch: of an exception a process tells no more than the text of its traceback.
    """

    stream: TrainingStream
    first: int

    def __iter__(self) -> Iterator[RCTBatch | InputError]:
        process, workers = get_worker_info(), self.stream.plan.workers
        # The loader takes from its processes in turn, beginning with the first.
        worker = ((0 if process is None else process.id) + self.first) % workers
        try:
            yield from self.stream.batches(worker, len(range(worker, self.first, workers)))
        except InputError as error:
            yield error
