"""Batches of one stream: windows read ahead on threads, shuffled, cut, and the rest carried into the next."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_budget.batch import RCTBatch
from lightning_budget.data.stream.encoding import Encoded
from lightning_budget.data.stream.freed_memory import keep_freed_memory
from lightning_budget.data.stream.plan import EpochPlan, Segment, Window, first_rows
from lightning_budget.data.stream.shuffled import Rows, WindowOrder, WindowRows, batch_of
from lightning_budget.data.stream.trial_source import TrialSource
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema


@dataclass(frozen=True)
class TrainingStream:
    """The training rows of a trial as one worker of one rank sees them.

    Attributes:
        trial: the files; schema: by which they are encoded; plan: of the epoch.
        threads: pieces read together.
    """

    trial: TrialSource
    schema: DataSchema
    plan: EpochPlan
    threads: int = 1

    def batches(self, worker: int, first: int = 0) -> Iterator[RCTBatch]:
        """The worker's batches from number ``first`` on, the same ones whether those before were asked for or not.

        ``row`` is a row's position in the training split. In memory are two windows, the one that batches are cut from
        and the one that is read meanwhile, and the pieces at work.

        Raises:
            InputError: if a file cannot be read, or is another one than was scanned.
        """
        keep_freed_memory()
        size = self.plan.batch_rows
        windows = self.plan.windows(worker)
        windows = [w for w in windows if w.first + w.rows > first * size]
        if not windows:
            return
        end = windows[-1].first + windows[-1].rows
        carried: list[Rows] = []
        pool = ThreadPoolExecutor(self.threads, "window")
        try:
            # Readers go from the last piece of a window to the first one of the next without waiting for each other.
            ahead = [self._begin(pool, worker, w) for w in windows[:2]]
            for i, window in enumerate(windows):
                rows = ahead.pop(0).rows()
                cuts = self._cuts(window)
                for number, stop in enumerate((cuts[1:] + window.first).tolist()):
                    if stop <= first * size:
                        continue
                    part = rows.of_batch(number)
                    if stop % size and stop < end:
                        carried.append(part.copy())
                        continue
                    yield batch_of([*carried, part])
                    carried = []
                    del part
                del rows
                if i + 2 < len(windows):
                    ahead.append(self._begin(pool, worker, windows[i + 2]))
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, worker: int, window: Window) -> _Reading:
        """Have a window read."""
        order = pool.submit(self._arranged, worker, window)
        # The order has begun before any of the pieces, which wait for it.
        return _Reading(order, [pool.submit(self._read, s, i, order) for i, s in enumerate(window.segments)])

    def _arranged(self, worker: int, window: Window) -> WindowRows:
        offsets = first_rows(self.plan.piece_rows)
        return WindowRows(
            WindowOrder(self.plan.order(worker, window).numpy(), self._cuts(window)),
            [s.rows for s in window.segments],
            [offsets[s.piece] + s.start for s in window.segments],
            self.schema,
            self.trial.columns.weight is not None,
        )

    def _read(self, segment: Segment, number: int, order: Future[WindowRows]) -> None:
        found, index = self._training_rows(segment)
        order.result().put(number, found, index[segment.start : segment.stop])

    def _cuts(self, window: Window) -> NDArray[np.int64]:
        """Where batches begin and end in a window."""
        size = self.plan.batch_rows
        return np.unique([0, *range(-window.first % size, window.rows, size), window.rows])

    def _training_rows(self, segment: Segment) -> tuple[Encoded, NDArray[np.uint32]]:
        piece, expected = self.trial.source.pieces[segment.piece], self.plan.piece_rows[segment.piece]
        found, index = self.trial.training_rows(piece, self.schema)
        if len(index) != expected:
            raise InputError(
                f"{self.trial.source.file_of(piece).path}: {len(index)} training rows where the scan found {expected}",
                "files that stay as they are",
                "start again",
            )
        return found, index


@dataclass(frozen=True)
class _Reading:
    """A window that is being read: what it will be, and its pieces."""

    order: Future[WindowRows]
    pieces: list[Future[None]]

    def rows(self) -> WindowRows:
        """When all is there.

        Raises:
            BaseException: that of the first piece that could not be read.
        """
        for piece in self.pieces:
            piece.result()
        return self.order.result()
