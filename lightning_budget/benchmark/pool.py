"""Cells side by side, in processes of one thread each."""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for

from lightning_budget.benchmark.cell import Data, Outcome, run_cell
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell, Suite

ATTEMPTS = 2
"""How often a cell is begun that is under way when a process dies."""

_data = Data()


def try_cell(suite: Suite, cell: Cell) -> Outcome:
    """Run a cell; whatever goes wrong in it is its outcome, and stands in the folder with its traceback."""
    try:
        return run_cell(suite, cell, _data)
    except Exception as e:
        Store(suite.folder).tell(cell, "failed", traceback.format_exc())
        return Outcome(cell, "failed", f"{type(e).__name__}: {e}")


def run_here(suite: Suite, cells: Sequence[Cell]) -> Iterator[Outcome]:
    """One after the other in this process."""
    for cell in cells:
        yield try_cell(suite, cell)


def run_processes(
    suite: Suite,
    cells: Sequence[Cell],
    workers: int,
    tick: Callable[[], None] = lambda: None,
    pool: Callable[[int], ProcessPoolExecutor] | None = None,
) -> Iterator[Outcome]:
    """In ``workers`` processes, as they end.

    A process that is killed takes the pool with it: those under way are begun anew in another pool, ``ATTEMPTS`` times
    at most.

    Args:
        tick: called twice a second.
        pool: builds a pool of some processes.
    """
    attempts = dict.fromkeys(cells, 0)
    while attempts:
        with (pool or new_pool)(workers) as executor:
            futures: dict[Future[Outcome], Cell] = {}
            waiting = list(attempts)
            try:
                while waiting or futures:
                    # Only as many as there are processes: those under way are then known.
                    while waiting and len(futures) < workers:
                        cell = waiting.pop(0)
                        futures[executor.submit(try_cell, suite, cell)] = cell
                        attempts[cell] += 1
                    done, _ = wait(futures, 0.5, FIRST_COMPLETED)
                    tick()
                    for future in done:
                        outcome = future.result()
                        del attempts[futures.pop(future)]
                        yield outcome
            except BrokenProcessPool:
                for cell in [c for c in futures.values() if attempts[c] >= ATTEMPTS]:
                    del attempts[cell]
                    why = "its process was killed: is there memory enough for so many workers?"
                    Store(suite.folder).tell(cell, "failed", why)
                    yield Outcome(cell, "failed", why)
            except BaseException:
                _end(executor)
                raise


def new_pool(workers: int) -> ProcessPoolExecutor:
    """Processes forked from one that has imported everything and done nothing."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["lightning_budget.benchmark.cell"])
    return ProcessPoolExecutor(workers, context, initializer=_prepare)


def _prepare() -> None:
    import torch

    from lightning_budget.cli.build import quiet

    quiet()
    # Remarks on single trainings, which nobody watches.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a parent that was killed would go on, and then wait forever."""
    parent = mp.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _end(executor: ProcessPoolExecutor) -> None:
    for process in list((executor._processes or {}).values()):
        process.terminate()
    executor.shutdown(wait=False, cancel_futures=True)
