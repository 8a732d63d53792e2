"""A simulation from arguments to a folder of Parquet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lightning_budget.campaign.campaign import SPLITS, Campaign
from lightning_budget.campaign.writing.dataset import DATASET, write_dataset
from lightning_budget.campaign.writing.folder import Part, claim, parts_of, sweep
from lightning_budget.campaign.writing.workers import write_parts
from lightning_budget.errors import InputError
from lightning_budget.streaming.progress import progress
from lightning_budget.streaming.work import only_job, remove

BYTES_PER_ROW, BYTES_PER_ARM = 34, 7
"""On disk, without the oracle, and of its columns."""

ROOM = ".work"
"""The folder of the lock, inside the output."""


@dataclass(frozen=True)
class Simulation:
    """What to write.

    Attributes:
        output: a folder; a missing one is made.
        oracle: whether to write the true means of every arm.
        workers: processes, each of which holds one partition at a time; the files do not depend on it.
        shown: whether to show the progress.
    """

    campaign: Campaign
    output: Path
    oracle: bool = False
    workers: int = 1
    shown: bool = True


@dataclass(frozen=True)
class Written:
    """Rows and partitions of the folder, how many of them an earlier job had written, and bytes on disk."""

    rows: int
    partitions: int
    earlier: int
    bytes: int


def simulate(job: Simulation) -> Written:
    """Write every partition that is not there yet, then ``DATASET``, which says that all are.

    A job that was killed goes on with what is missing when it is started again.

    Raises:
        InputError: in one line, if the folder cannot be written, is full, in use, or another simulation's.
    """
    if job.workers < 1:
        raise InputError(f"workers={job.workers}", "at least 1", "workers=2")
    try:
        with only_job(job.output / ROOM, job.output):
            try:
                return _fill(job)
            finally:
                remove(job.output / ROOM)
    except OSError as e:
        raise InputError(
            f"output={str(job.output)!r} cannot be written: {e.strerror or e}",
            "a folder that can be written, with room",
            "make room, or mend the folder, and run the same command again; it goes on where it stopped",
        ) from e


def _fill(job: Simulation) -> Written:
    claim(job.output, job.campaign, job.oracle)
    for split in SPLITS:
        (job.output / f"split={split}").mkdir(exist_ok=True)
    sweep(job.output)
    parts = parts_of(job.campaign, job.output)
    left = [part for part in parts if not part.path.exists()]
    total, missing = (sum(part.rows for part in some) for some in (parts, left))
    _check_room(job, left)
    if left:
        (job.output / DATASET).unlink(missing_ok=True)
    with (
        progress("Simulating", total, total - missing, 1.0, job.shown) as tell,
        # However this ends, the processes do before the folder is let go.
        closing(write_parts(job.campaign, left, job.oracle, job.workers)) as done,
    ):
        for rows in done:
            tell(rows)
    if not (job.output / DATASET).exists():
        write_dataset(job.campaign, job.output)
    size = sum(part.path.stat().st_size for part in parts)
    return Written(total, len(parts), len(parts) - len(left), size)


def _check_room(job: Simulation, left: Sequence[Part]) -> None:
    arms = len(job.campaign.face_values)
    each = BYTES_PER_ROW + (BYTES_PER_ARM * arms if job.oracle else 0)
    needed, free = each * sum(part.rows for part in left), shutil.disk_usage(job.output).free
    if needed > free:
        raise InputError(
            f"output={str(job.output)!r}: {needed / 2**30:,.1f} GiB are to be written, {free / 2**30:,.1f} are free",
            f"up to {free // each:,} rows",
            "give a folder with more room, or fewer rows",
        )
