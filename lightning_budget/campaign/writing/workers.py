"""Partitions written by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from lightning_budget.atomic import sync_path
from lightning_budget.campaign.campaign import Campaign
from lightning_budget.campaign.writing.columns import columns_of, write_columns
from lightning_budget.campaign.writing.folder import Part
from lightning_budget.errors import InputError


def write_part(campaign: Campaign, part: Part, oracle: bool) -> int:
    """Generate one partition, whole on disk or not there, and say its rows.

    Raises:
        OSError: if it cannot be written.
    """
    table = columns_of(campaign.exposures(part.split, part.index), campaign, oracle)
    # Readers take names that end in .parquet; no two processes have one number.
    temporary = part.path.with_name(f".{part.path.name}.{os.getpid()}.tmp")
    try:
        write_columns(table, temporary)
        sync_path(temporary)
        os.replace(temporary, part.path)
    finally:
        temporary.unlink(missing_ok=True)
    return part.rows


def write_parts(campaign: Campaign, parts: Sequence[Part], oracle: bool, workers: int) -> Generator[int]:
    """Write all partitions, each process one at a time; yields the rows of each as it is done.

    Args:
        workers: processes; with 1, this one does it.

    Raises:
        OSError: if one cannot be written; those under way are finished, the others not begun.
        InputError: if a process was killed.
    """
    workers = min(workers, len(parts))
    if workers < 2:
        for part in parts:
            yield write_part(campaign, part, oracle)
        return
    # Forked from a process without threads, whatever runs in this one.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), _begin)
    try:
        for done in as_completed([pool.submit(write_part, campaign, part, oracle) for part in parts]):
            yield done.result()
    except BrokenProcessPool as e:
        raise InputError(
            f"one of {workers} processes was killed (out of memory?)",
            "memory for a partition in each",
            "run the same command with fewer workers; it goes on where it stopped",
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    # The first process hears an interruption and ends the others in good order; they must not outlive it, either.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
