"""The picture: what a rank must hold, against the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_budget.plots import Figure, bytes_per_rank, new_figure
from lightning_budget.training.capacity.description import Job, Machine, count, size
from lightning_budget.training.capacity.planner import free, row_wise_bytes

RANKS = tuple(2**i for i in range(11))


def memory_figure(machine: Machine, job: Job, rows: Sequence[int]) -> Figure:
    """The job's first table at several sizes, row-wise in device memory, on 1 to 1,024 ranks, and what there is.

    Args:
        machine: its memory is the limit; its number of ranks is not looked at.
        job: its other tables count too. The global batch stays the same; ranks that do not divide it are left out.
        rows: sizes of the first table.
    """
    first, others = job.tables[0], list(job.tables[1:])
    ranks = [r for r in RANKS if job.batch_size % r == 0]
    series = {}
    for n in rows:
        sized = replace(job, tables=[replace(first, rows=n), *others])
        needs = [row_wise_bytes(replace(machine, ranks=r), sized) for r in ranks]
        series[f"{first.name} {count(n)} × {first.dim}"] = [sum(s.hbm for s in need.values()) for need in needs]
    room = free(machine, job)
    limits = {
        f"{size(machine.hbm)} HBM": machine.hbm,
        f"{size(room.hbm)} of it left for tables": room.hbm,
        f"{size(machine.ddr_per_rank)} host memory per rank": machine.ddr_per_rank,
    }
    figure = new_figure(8.0, 5.0)
    ax = bytes_per_rank(figure.add_subplot(), ranks, series, limits)
    ax.set_title(
        f"Rows and {job.optimizer} state, {job.precision}: bytes per rank, row-wise\n"
        "estimates of TorchRec's planner for a described machine",
        loc="left",
        fontsize=11,
    )
    return figure
