"""TorchRec's planner on a described machine, and what its plan puts where."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption, Storage

from lightning_budget.models.user_effects import EFFECTS, SUMS
from lightning_budget.training.capacity.description import BYTES, USERS, Job, Machine, Table
from lightning_budget.training.capacity.refusal import refusal
from lightning_budget.training.capacity.storage import HOST_KERNELS, FusedStorageEstimator, state_bytes
from lightning_budget.training.capacity.traffic import (
    FLOAT_BYTES,
    ID_BYTES,
    Flow,
    Traffic,
    all_reduce,
    host_traffic,
    table_traffic,
)
from lightning_budget.training.sharding import sharders

MARGIN = 0.15
"""Share of device memory that TorchRec's planner leaves free."""

DENSE_COPIES = 6
"""Copies of the dense weights that TorchRec reserves: weights, Adam's two, and three in data-parallel buffers."""

HISTORY_BYTES = FLOAT_BYTES * (2 + EFFECTS + SUMS)
"""Of a user in training, see :class:`~lightning_budget.models.user_history.UserHistory`."""


@dataclass(frozen=True)
class Shard:
    """What one rank holds of one table, in bytes on the device (``hbm``) and on the host (``ddr``).

    ``weights`` and ``state`` are whole; ``cache`` is the device's copy of host rows with its bookkeeping; ``buffers``
    are inputs and outputs of a step. ``first_row``: of the shard in the table.
    """

    rank: int
    first_row: int
    rows: int
    weights: Storage
    state: Storage
    cache: Storage
    buffers: Storage

    @property
    def total(self) -> Storage:
        """What the planner counts for it."""
        return self.weights + self.state + self.cache + self.buffers


@dataclass(frozen=True)
class TablePlan:
    """Where a table lies, and the milliseconds a step that the planner expects of its busiest shard."""

    table: Table
    sharding: str
    kernel: str
    shards: tuple[Shard, ...]
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The planner's answer.

    Attributes:
        machine, job: what was asked.
        tables: in the order of the job.
        dense, history, inputs, margin: bytes reserved on every rank for dense weights with all copies, for the history
            of users, for the ids of batches in flight, and as a margin; on the device, on CPU on the host.
        traffic: of one step.
    """

    machine: Machine
    job: Job
    tables: tuple[TablePlan, ...]
    dense: int
    history: int
    inputs: int
    margin: int
    traffic: Traffic

    def used(self, part: str = "total") -> list[Storage]:
        """``[R]`` bytes of a part of the shards (weights, state, cache, buffers, total)."""
        out = [Storage(0, 0)] * self.machine.ranks
        for table in self.tables:
            for shard in table.shards:
                out[shard.rank] = out[shard.rank] + getattr(shard, part)
        return out

    def memory(self) -> dict[str, Storage]:
        """Bytes of the rank that holds most, by what they are for; ``total`` is of one rank, not a sum of maxima."""
        parts = {part: _most(self.used(part)) for part in ("weights", "state", "cache", "buffers")}
        on_host = self.machine.device == "cpu"
        reserved = ("dense", "history", "inputs", "margin")
        for name in reserved:
            amount = getattr(self, name)
            parts[name] = Storage(0, amount) if on_host else Storage(amount, 0)
        total = sum((parts[name] for name in reserved), _most(self.used()))
        return {**parts, "total": total}

    def seconds(self) -> dict[str, float]:
        """Of each exchange at the machine's bandwidths, as if nothing overlapped."""
        out = {name: flow.busiest / self.machine.link for name, flow in self.traffic.flows.items()}
        return {**out, "host rows, none cached": max(self.traffic.host) / self.machine.host}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: bytes, seconds, and for each table its shards."""
        flows = {
            name: {"busiest_rank_bytes": flow.busiest, "sent": list(flow.sent), "received": list(flow.received)}
            for name, flow in self.traffic.flows.items()
        }
        return {
            "what": "estimates of TorchRec's planner for a described machine; nothing was run",
            "machine": asdict(self.machine),
            "job": {**asdict(self.job), "tables": [asdict(t) for t in self.job.tables]},
            "tables": [asdict(t) for t in self.tables],
            "memory_of_fullest_rank": {name: asdict(storage) for name, storage in self.memory().items()},
            "traffic_per_step": flows,
            "host_rows_bytes": list(self.traffic.host),
            "seconds_per_step": self.seconds(),
        }


def plan(machine: Machine, job: Job) -> Plan:
    """Ask TorchRec's planner where the tables would lie.

    The planner is the one that training asks, with the same sharders and reservations; its storage estimator is
    :class:`~lightning_budget.training.capacity.storage.FusedStorageEstimator`.

    Raises:
        InputError: if nothing fits, with what is needed, what there is, and what would fit; or if the job cannot run
            on such a machine.
    """
    job.check_runs_on(machine)
    try:
        return _plan(machine, job)
    except PlannerError as error:
        raise refusal(machine, job, free(machine, job), row_wise_bytes(machine, job), fits) from error


def fits(machine: Machine, job: Job) -> bool:
    """Whether the planner finds a plan."""
    least = sum(t.rows * t.dim for t in job.tables) * BYTES[job.precision] / machine.ranks
    # Spares the planner: not even bare weights, spread evenly, would fit.
    if least > machine.ddr_per_rank + (machine.hbm if machine.device == "cuda" else 0):
        return False
    try:
        _plan(machine, job)
    except PlannerError:
        return False
    return True


def row_wise_bytes(machine: Machine, job: Job) -> dict[str, Storage]:
    """Bytes on the fullest rank of each table if it were laid row-wise, whole in device memory, fitting or not."""
    return {
        name: _most([_storage(s) for s in option.shards])
        for (name, kind, kernel), option in _options(machine, job, job.batch_size // machine.ranks, fused=True).items()
        if (kind, kernel) == ("row_wise", "fused")
    }


def free(machine: Machine, job: Job) -> Storage:
    """Bytes of each rank that the planner gives to tables; negative where its reservations exceed the memory."""
    dense, history, inputs, margin = _reserved(machine, job)
    if machine.device == "cpu":
        return Storage(hbm=0, ddr=machine.ddr_per_rank - dense - history - inputs)
    return Storage(hbm=machine.hbm - dense - history - inputs - margin, ddr=machine.ddr_per_rank)


class _KeepBest(NoopEmbeddingStats):
    """TorchRec shows a plan with its storage only to its statistics."""

    options: Sequence[ShardingOption] = ()

    def log(self, *args: Any, **kwargs: Any) -> None:
        self.options = kwargs["best_plan"]


def _plan(machine: Machine, job: Job) -> Plan:
    constraints, local_batch = job.constraints(), job.batch_size // machine.ranks
    dense, history, inputs, margin = _reserved(machine, job)
    kept = _KeepBest()
    with _quiet():
        topology = machine.topology()
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=local_batch,
            constraints=constraints,
            enumerator=EmbeddingEnumerator(
                topology=topology,
                batch_size=local_batch,
                constraints=constraints,
                estimator=[
                    EmbeddingPerfEstimator(topology=topology, constraints=constraints),
                    FusedStorageEstimator(topology, constraints, job.optimizer),
                ],
            ),
            storage_reservation=HeuristicalStorageReservation(percentage=MARGIN, dense_tensor_estimate=dense + history),
            stats=kept,
        )
        planner.plan(job.module(), sharders())
    chosen = {option.name: option for option in kept.options}
    # The same without data: what is left are weights, state and cache.
    standing = _options(machine, job, local_batch=0)
    tables = tuple(_table_plan(machine, job, t, chosen[t.name], standing) for t in job.tables)
    return Plan(machine, job, tables, dense, history, inputs, margin, _traffic(machine, job, tables))


def _reserved(machine: Machine, job: Job) -> tuple[int, int, int, int]:
    """Dense, history, inputs and margin, by TorchRec's heuristic: inputs are 2 batches of ids, 10 copies each."""
    local_ids = sum(t.ids for t in job.tables) * (job.batch_size // machine.ranks)
    margin = machine.hbm - int((1 - MARGIN) * machine.hbm) if machine.device == "cuda" else 0
    history = HISTORY_BYTES * sum(t.rows for t in job.tables if t.name == USERS) if job.user_history else 0
    return DENSE_COPIES * FLOAT_BYTES * job.dense_parameters, history, 20 * math.ceil(local_ids * ID_BYTES), margin


def _options(
    machine: Machine, job: Job, local_batch: int, fused: bool = False
) -> dict[tuple[str, str, str], ShardingOption]:
    """Every layout of every table with its storage, by (table, sharding, kernel); ``fused``: row-wise on the device."""
    if fused:
        job = replace(job, sharding=["row_wise"], kernels=["fused"])
    constraints = job.constraints()
    with _quiet():
        topology = machine.topology()
        options = EmbeddingEnumerator(
            topology=topology,
            batch_size=local_batch,
            constraints=constraints,
            estimator=FusedStorageEstimator(topology, constraints, job.optimizer),
        ).enumerate(job.module(), sharders())
    return {(o.name, o.sharding_type, o.compute_kernel): o for o in options}


def _table_plan(
    machine: Machine, job: Job, table: Table, option: ShardingOption, standing: dict[tuple[str, str, str], Any]
) -> TablePlan:
    kind, kernel = option.sharding_type, option.compute_kernel
    on_host = machine.device == "cpu" or kernel in HOST_KERNELS
    shards = []
    for shard, empty in zip(option.shards, standing[table.name, kind, kernel].shards, strict=True):
        rows, columns = shard.size
        size = rows * columns * BYTES[job.precision]
        weights = Storage(0, size) if on_host else Storage(size, 0)
        state = state_bytes(job.optimizer, rows, columns, kernel, machine.device)
        shards.append(
            Shard(
                rank=cast("int", shard.rank),
                first_row=shard.offset[0],
                rows=rows,
                weights=weights,
                state=state,
                cache=_storage(empty) - weights - state,
                buffers=_storage(shard) - _storage(empty),
            )
        )
    slowest = max((s.perf for s in option.shards if s.perf is not None), key=lambda perf: perf.total)
    return TablePlan(table, kind, kernel, tuple(shards), asdict(slowest))


def _traffic(machine: Machine, job: Job, tables: Sequence[TablePlan]) -> Traffic:
    r, local_batch = machine.ranks, job.batch_size // machine.ranks
    nothing = Flow((0.0,) * r, (0.0,) * r)
    ids, forward, backward, host = nothing, nothing, nothing, [0.0] * r
    for each in tables:
        rows = [0] * r
        for shard in each.shards:
            rows[shard.rank] += shard.rows
        flows = table_traffic(each.table, rows, local_batch)
        ids, forward, backward = ids + flows[0], forward + flows[1], backward + flows[2]
        if each.kernel in HOST_KERNELS:
            moved = host_traffic(each.table, rows, job.batch_size, each.table.dim * BYTES[job.precision])
            host = [a + b for a, b in zip(host, moved, strict=True)]
    return Traffic(ids, forward, backward, all_reduce(job.dense_parameters, r), tuple(host))


def _storage(shard: Any) -> Storage:
    assert shard.storage is not None
    return shard.storage


def _most(storages: Sequence[Storage]) -> Storage:
    """The fullest device and the fullest host."""
    return Storage(hbm=max(s.hbm for s in storages), ddr=max(s.ddr for s in storages))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on reservations and topologies that are meant as they are."""
    log = logging.getLogger("torchrec")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
