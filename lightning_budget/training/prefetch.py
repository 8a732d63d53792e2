"""Batches made ready by a thread while the model computes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Queue
from typing import Any

import torch

from lightning_budget.training.wrapped_loader import WithState, WrappedLoader, is_stateful


def prefetch(loader: Any, depth: int = 2, device: torch.device | None = None) -> Prefetch:
    """A :class:`Prefetch` around a loader, with a state if that has one.

    Args:
        loader: collates in this process; its batches must not depend on global random numbers, which the model draws
            from at the same time.
        depth: batches kept ready.
        device: a CUDA device copies them there too, on a stream of its own; otherwise they stay in host memory.
    """
    return (_StatefulPrefetch if is_stateful(loader) else Prefetch)(loader, depth, device)


class Prefetch(WrappedLoader):
    """The batches of a loader, in order; its exceptions are raised where the batch would have come.

    The thread starts with the first batch asked for, so after the trainer has set the epoch, and ends with the
    iterator.
    """

    def __init__(self, loader: Any, depth: int = 2, device: torch.device | None = None) -> None:
        super().__init__(loader)
        self.depth = depth
        self.device = device if device is not None and device.type == "cuda" else None

    @property
    def even_over_ranks(self) -> bool:
        """As the loader's; see :func:`~lightning_budget.training.even_batches.even_batches`."""
        return getattr(self.loader, "even_over_ranks", False)

    def __iter__(self) -> Iterator[Any]:
        ready: Queue[_Ready] = Queue(self.depth)
        stop = threading.Event()
        thread = threading.Thread(target=self._read, args=(ready, stop), name="prefetch", daemon=True)
        thread.start()
        try:
            while not (item := ready.get()).end:
                if item.error is not None:
                    raise item.error
                self._seen = item.state
                if item.copied is not None:
                    stream = torch.cuda.current_stream(self.device)
                    stream.wait_event(item.copied)
                    item.batch.record_stream(stream)
                yield item.batch
            self._seen = item.state
        finally:
            stop.set()
            # Room for the one batch the thread may be waiting to hand over.
            while not ready.empty():
                ready.get()
            thread.join()

    def _read(self, ready: Queue[_Ready], stop: threading.Event) -> None:
        try:
            side = torch.cuda.Stream(self.device) if self.device is not None else None
            for batch in self.loader:
                ready.put(self._copied(batch, side))
                if stop.is_set():
                    return
            ready.put(_Ready(state=self._snapshot(), end=True))
        except Exception as error:
            ready.put(_Ready(error=error))

    def _copied(self, batch: Any, side: torch.cuda.Stream | None) -> _Ready:
        state = self._snapshot()
        if side is None:
            return _Ready(batch, state)
        with torch.cuda.stream(side):
            # A copy from ordinary memory would wait for the device. Allocator and stream keep the pinned memory until
            # the copy is done.
            batch = batch.pin_memory().to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(side)
            return _Ready(batch, state, copied)


class _StatefulPrefetch(WithState, Prefetch):
    pass


@dataclass
class _Ready:
    batch: Any = None
    state: Any = None
    copied: torch.cuda.Event | None = None
    error: Exception | None = None
    end: bool = False
