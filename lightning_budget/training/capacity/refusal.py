"""No plan fits: one line that says what is missing and what would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from torchrec.distributed.planner.types import Storage

from lightning_budget.errors import InputError
from lightning_budget.training.capacity.description import Job, Machine, size

MOST_RANKS = 1024
"""Larger machines are not tried: the planner needs seconds for each."""

LARGEST = 3
"""So many tables are named."""


def refusal(
    machine: Machine,
    job: Job,
    free: Storage,
    needed: Mapping[str, Storage],
    fits: Callable[[Machine, Job], bool],
) -> InputError:
    """The error to raise.

    Args:
        machine, job: what was asked.
        free: bytes of each rank for tables.
        needed: by table, bytes per rank if spread row-wise over device memory (on CPU, host memory).
        fits: tries another machine or job.
    """
    on_gpu = machine.device == "cuda"
    need = {name: s.hbm if on_gpu else s.ddr for name, s in needed.items()}
    largest = sorted(job.tables, key=lambda t: -need[t.name])[:LARGEST]
    named = ", ".join(f"{t.name} ({t.rows:,} × {t.dim} {job.precision}) {size(need[t.name])}" for t in largest)
    if len(job.tables) > LARGEST:
        named += f", {len(job.tables) - LARGEST} more tables"
    have = f"{size(free.ddr)} of host memory"
    if on_gpu:
        have = f"{size(free.hbm)} of {size(machine.hbm)} HBM after reservations, and {have}"
    # Of each series the mildest change that fits.
    found = (next((text for text, other in series if fits(*other)), None) for series in _ways(machine, job))
    fixes = [text for text in found if text]
    return InputError(
        f"no plan for {machine.ranks} ranks: evenly spread, with {job.optimizer} state and buffers, each rank needs "
        f"{size(sum(need.values()))}: {named}",
        f"{have} per rank, kernels {', '.join(job.kernels)}",
        "one of " + ", ".join(fixes) if fixes else "several of: more ranks or memory, hashed ids, smaller dim",
    )


_Change = tuple[str, tuple[Machine, Job]]


def _ways(machine: Machine, job: Job) -> list[Iterator[_Change]]:
    ways = [_more_ranks(machine, job), _smaller_dims(machine, job)]
    if machine.device == "cuda":
        ways += [
            iter([(f"kernels=[{','.join(kernels)}]", (machine, replace(job, kernels=kernels)))])
            for kernel in ("fused_uvm_caching", "fused_uvm")
            if kernel not in job.kernels and (kernels := [*job.kernels, kernel])
        ]
    if job.precision == "fp32":
        ways.append(iter([("precision=fp16", (machine, replace(job, precision="fp16")))]))
    if job.optimizer not in ("rowwise_adagrad", "sgd"):
        ways.append(iter([("optimizer=rowwise_adagrad", (machine, replace(job, optimizer="rowwise_adagrad")))]))
    return ways


def _more_ranks(machine: Machine, job: Job) -> Iterator[_Change]:
    ranks = 2 * machine.ranks
    while ranks <= MOST_RANKS:
        whole_nodes = ranks <= machine.ranks_per_node or ranks % machine.ranks_per_node == 0
        if whole_nodes and job.batch_size % ranks == 0:
            yield f"ranks={ranks}", (replace(machine, ranks=ranks), job)
        ranks *= 2


def _smaller_dims(machine: Machine, job: Job) -> Iterator[_Change]:
    dim = max(t.dim for t in job.tables) // 2 // 4 * 4
    while dim >= 4:
        tables = [replace(t, dim=min(t.dim, dim)) for t in job.tables]
        yield f"embedding_dim={dim}", (machine, replace(job, tables=tables))
        dim = dim // 2 // 4 * 4
