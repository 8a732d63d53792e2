"""Equally many batches of equal size on every rank, whatever each rank's loader yields.

With sharded tables every forward is a collective, so a rank with a batch more than the others waits for ever, and over
gloo a rank with a larger batch fails. Before each step the ranks tell one another what they have::

    rank 0    [256] [256] [ 64]                  training:    256 | 256            the rest is left out
    rank 1    [256] [256] [256] [256]            evaluation:  256 | 256 | 256 | 256
                                                 rank 0's third batch is filled up, its fourth is all filling
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from torch import Tensor

from lightning_budget.training.evening import NO_BATCH, Cut, Fill, size_of
from lightning_budget.training.wrapped_loader import WithState, WrappedLoader, is_stateful

_FAILED = -3


def even_batches(loader: Any, group: dist.ProcessGroup, training: bool) -> Any:
    """The loader itself where it is even already, otherwise an :class:`EvenBatches` around it.

    Called on all ranks together. A loader whose attribute ``even_over_ranks`` is true promises as many batches, of the
    same sizes, on every rank.

    Args:
        loader: this rank's.
        group: of all ranks, gloo, used for nothing else: what is said one batch ahead must not meet other messages.
        training: leave out what other ranks have no counterpart for, rather than fill up.
    """
    if isinstance(loader, EvenBatches):
        loader = loader.loader
    if dist.get_world_size(group) == 1 or getattr(loader, "even_over_ranks", False):
        return loader
    return (_StatefulEvenBatches if is_stateful(loader) else EvenBatches)(loader, group, training)


class EvenBatches(WrappedLoader):
    """The batches of a loader, cut or filled so that all ranks make equal steps.

    - Training: a step has as many rows as the smallest batch of any rank, and the epoch ends with the first rank that
      has no batch, or an empty one. What is left out is told in a warning.
    - Evaluation: every row comes once. Shorter batches are filled up to the largest, and a rank without a batch goes
      on with filling, marked by ``row`` −1 (:meth:`RCTBatch.padded`, :meth:`RCTBatch.filling`). Batches of another
      class cannot mark rows: the last one is repeated, with a warning, and sizes stay as they are.

    What a step has is agreed on while the model computes the step before: gloo's own threads carry it. All ranks must
    ask for equally many batches. Batches should lie in host memory.

    Args:
        loader, group, training: as :func:`even_batches`.

    Raises:
        RuntimeError: on all ranks, if the loader of any rank fails; it names the rank and its error.
    """

    def __init__(self, loader: Any, group: dist.ProcessGroup, training: bool) -> None:
        super().__init__(loader)
        self.group = group
        self.training = training
        self.rank = dist.get_rank(group)
        self._passes = 0
        self._own_length = _length(loader)
        # Agreed on here, where all ranks are: later on, a rank alone may ask.
        lengths = self._tell(-1 if self._own_length is None else self._own_length).wait()
        known = min(lengths) >= 0
        self._length = (min if training else max)(lengths) if known else None

    @property
    def batch_sampler(self) -> Any:
        """Where the trainer sets the epoch too."""
        sampler = super().batch_sampler
        # It would look up a batch of filling among the batches that this one has recorded.
        return None if isinstance(sampler, _IndexBatchSamplerWrapper) else sampler

    def __len__(self) -> int:
        """Steps of every rank.

        Raises:
            TypeError: if a rank's loader does not know its length.
        """
        if self._length is None:
            raise TypeError("the number of batches is not known on every rank")
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing is read before the trainer has set the epoch.
        self._passes += 1
        evened = Cut() if self.training else Fill(self.group)
        source = self._read()
        ahead, steps = self._look_ahead(source), 0
        while True:
            here, said = ahead, self._agreed(ahead)
            batch = evened(here.batch, said)
            if batch is None:
                # A loader at its end may say so in its state; one cut short has not been seen to its end.
                self._seen = here.state if said[self.rank] == NO_BATCH else self._seen
                break
            steps += 1
            self._seen = here.state
            if self.training and steps == self._length:
                # The trainer knows the length and will not ask again.
                self._tell_left_out(evened.rows_left_out, steps, None)
                yield batch
                return
            ahead = self._look_ahead(source)
            yield batch
        if self.training:
            self._tell_left_out(evened.rows_left_out, steps, here.batch)

    def _read(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.training or size_of(batch) != 0:
                yield batch

    def _look_ahead(self, source: Iterator[Any]) -> _Ahead:
        batch, state, error = None, None, None
        try:
            batch = next(source, None)
            status = NO_BATCH if batch is None else size_of(batch)
            state = self._snapshot()
        except Exception as e:
            error, status = e, _FAILED
        return _Ahead(batch, state, error, self._tell(status))

    def _tell(self, number: int) -> _Said:
        # A sum of which each rank has one term: over gloo, half the CPU time of a gather.
        numbers = torch.zeros(dist.get_world_size(self.group), dtype=torch.int64)
        numbers[self.rank] = number
        return _Said(cast(dist.Work, dist.all_reduce(numbers, group=self.group, async_op=True)), numbers)

    def _agreed(self, ahead: _Ahead) -> list[int]:
        said = ahead.said.wait()
        if _FAILED in said:
            errors: list[str | None] = [None] * len(said)
            mine = ahead.error and f"{type(ahead.error).__name__}: {ahead.error}"
            dist.all_gather_object(errors, mine, group=self.group)
            told = "; ".join(f"the data loader of rank {r} failed: {e}" for r, e in enumerate(errors) if e)
            raise RuntimeError(told) from ahead.error
        return said

    def _tell_left_out(self, rows: int, steps: int, unused: Any) -> None:
        if self._own_length is not None:
            batches = str(max(0, self._own_length - steps))
        else:
            batches = "0" if unused is None else "at least 1"
        if rows or batches != "0":
            warnings.warn(
                f"rank {self.rank} left out {batches} batches, and cut {rows} rows off others, in pass {self._passes} "
                "over its training data, because other ranks had fewer",
                stacklevel=2,
            )


class _StatefulEvenBatches(WithState, EvenBatches):
    pass


@dataclass
class _Said:
    work: dist.Work
    numbers: Tensor

    def wait(self) -> list[int]:
        self.work.wait()
        return self.numbers.tolist()


@dataclass
class _Ahead:
    batch: Any
    state: Any
    error: Exception | None
    said: _Said


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
