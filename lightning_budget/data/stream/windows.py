"""Batches of one stream: windows read ahead on a thread, shuffled, cut, and the rest carried into the next."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from lightning_budget.streaming.threads import for_each


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
        and the one that is read meanwhile, and of that one also the pieces until its rows are in order.

        Raises:
            InputError: if a file cannot be read, or is another one than was scanned.
        """
        keep_freed_memory()
        size = self.plan.batch_rows
        windows = self.plan.windows(worker)
        windows = [w for w in windows if w.first + w.rows > first * size]
        if not windows:
            return
        # The row of the stream that the next batch begins with.
        at = first * size
        end = windows[-1].first + windows[-1].rows
        carried: list[Rows] = []
        with ThreadPoolExecutor(1, "window") as reader:
            ahead = reader.submit(self._read, worker, windows[0])
            for i, window in enumerate(windows):
                rows = ahead.result()
                if i + 1 < len(windows):
                    ahead = reader.submit(self._read, worker, windows[i + 1])
                while (start := at + sum(map(len, carried)) - window.first) < window.rows:
                    stop = min(at + size - window.first, window.rows)
                    part = rows.cut(start, stop)
                    if stop == window.rows and window.first + stop < min(at + size, end):
                        carried.append(part.copy())
                        break
                    yield batch_of([*carried, part])
                    at, carried = at + size, []

    def _read(self, worker: int, window: Window) -> Rows:
        offsets = first_rows(self.plan.piece_rows)
        segments = window.segments
        order = WindowOrder(
            self.plan.order(worker, window).numpy(),
            [s.rows for s in segments],
            [offsets[s.piece] + s.start for s in segments],
            self._cuts(window),
        )
        rows = WindowRows(order, self.schema, self.trial.columns.weight is not None)

        def read(number: int) -> None:
            segment = segments[number]
            found, index = self._training_rows(segment)
            rows.put(number, found, index[segment.start : segment.stop])

        for_each(range(len(segments)), read, self.threads)
        rows.lay_out()
        for_each(range(len(segments)), rows.put_lists, self.threads)
        return rows.rows()

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
