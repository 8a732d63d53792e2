"""Which rank holds which part of which table: planned by TorchRec within limits, or read from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError
from lightning_budget.training.optimizers import optimizer_in_backward
from lightning_budget.training.sharding import embedding_tables, sharders, table_parameter

# Left out: data_parallel, where in-backward optimizers are silently ignored, and grid_shard, which loads whole tables
# wrongly.
SHARDING_TYPES = ("row_wise", "table_wise", "column_wise", "table_row_wise", "table_column_wise")
KERNELS = ("fused", "fused_uvm", "fused_uvm_caching")
GIB = 1 << 30


@dataclass(frozen=True)
class TableSharding:
    """How the planner may lay a table out.

    Attributes:
        types: sharding types to choose from.
        kernels: where rows may lie: ``fused`` (device memory), ``fused_uvm`` (host memory), ``fused_uvm_caching``
            (host memory, device cache); empty: all that the device has.
        min_columns: of a column-wise shard.
    """

    types: Sequence[str] = ("row_wise", "table_wise")
    kernels: Sequence[str] = ()
    min_columns: int | None = None

    def __post_init__(self) -> None:
        for name, values, allowed in (("types", self.types, SHARDING_TYPES), ("kernels", self.kernels, KERNELS)):
            if (bad := [v for v in values if v not in allowed]) or (name == "types" and not values):
                raise InputError(
                    f"sharding.{name}={list(values)}", ", ".join(allowed), f"take out {bad}" if bad else "name one"
                )


@dataclass(frozen=True)
class ShardingConfig:
    """What the planner has to keep to.

    Attributes:
        default: for tables not named in ``tables``.
        tables: by name.
        hbm_gib, ddr_gib: memory per rank on its device and on the host; ``None``: what the
            device has, and this rank's share of what the host has.
        batch_size: rows of a step per rank, for the planner's buffers.
        plan: a file written by :func:`save_plan`, taken instead of planning.
    """

    default: TableSharding = field(default_factory=TableSharding)
    tables: Mapping[str, TableSharding] = field(default_factory=dict)
    hbm_gib: float | None = None
    ddr_gib: float | None = None
    batch_size: int = 2048
    plan: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("hbm_gib", "ddr_gib"):
            if (limit := getattr(self, name)) is not None and not limit > 0:
                raise InputError(f"sharding.{name}={limit:g}", "above 0 GiB per rank", "raise it, or leave it out")


def sharding_plan(
    module: nn.Module,
    config: ShardingConfig,
    device: torch.device,
    world_size: int,
    local_world_size: int,
    group: dist.ProcessGroup,
) -> ShardingPlan:
    """The same plan on all ranks.

    Every rank plans and the errors are exchanged before anybody waits: TorchRec's collective planner raises on rank 0
    alone and leaves the others hanging.

    Raises:
        InputError: on all ranks, if on any rank no plan keeps to ``config``.
    """
    plan, error = None, None
    try:
        plan = plan_here(module, config, device, world_size, local_world_size)
    except InputError as e:
        error = e
    errors: list[InputError | None] = [None] * world_size
    dist.all_gather_object(errors, error, group=group)
    if first := next((e for e in errors if e), None):
        raise first
    plans = [plan]
    dist.broadcast_object_list(plans, src=0, group=group)
    assert plans[0] is not None
    return plans[0]


def plan_here(
    module: nn.Module, config: ShardingConfig, device: torch.device, world_size: int, local_world_size: int
) -> ShardingPlan:
    """The plan as this process makes or reads it, without the others; arguments as :func:`sharding_plan`.

    Raises:
        InputError: if no plan keeps to ``config``.
    """
    if not list(embedding_tables(module)):
        return ShardingPlan({})
    try:
        plan = (
            load_plan(Path(config.plan), module, device, world_size)
            if config.plan is not None
            else make_plan(module, config, device, world_size, local_world_size)
        )
    except InputError:
        raise
    except Exception as e:
        reason = next((line for line in str(e).splitlines() if line.strip()), "no reason given").strip()
        raise InputError(
            f"no sharding plan for {world_size} processes ({type(e).__name__}: {reason})",
            "tables that fit sharding.hbm_gib (GPU) or sharding.ddr_gib (CPU) of every rank",
            "use more processes, or allow row_wise, or fused_uvm_caching on GPU",
        ) from e
    check_states(plan, module)
    return plan


def make_plan(
    module: nn.Module, config: ShardingConfig, device: torch.device, world_size: int, local_world_size: int
) -> ShardingPlan:
    """Ask TorchRec's planner.

    Raises:
        InputError: if ``config`` names a table that is not there.
    """
    names = [table.name for _, table in embedding_tables(module)]
    for name in config.tables:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            raise InputError(
                f"sharding.tables.{name} names no table",
                ", ".join(names),
                f"did you mean {close[0]!r}?" if close else "take it out",
            )
    constraints = {}
    for name in names:
        table = config.tables.get(name, config.default)
        constraints[name] = ParameterConstraints(
            sharding_types=_types(table.types, world_size),
            compute_kernels=list(table.kernels) or (["fused"] if device.type == "cpu" else list(KERNELS)),
            min_partition=table.min_columns,
        )
    topology = Topology(
        world_size=world_size,
        local_world_size=local_world_size,
        compute_device=device.type,
        hbm_cap=_device_memory(device) if config.hbm_gib is None else int(config.hbm_gib * GIB),
        ddr_cap=_host_memory() // local_world_size if config.ddr_gib is None else int(config.ddr_gib * GIB),
    )
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints, batch_size=config.batch_size)
    return planner.plan(module, sharders())


def _types(types: Sequence[str], world_size: int) -> list[str]:
    # A single process has nothing to send, and whole tables spare it the cutting by rows.
    return ["table_wise"] if world_size == 1 and "table_wise" in types else list(types)


def _device_memory(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_states(plan: ShardingPlan, module: nn.Module) -> None:
    """Refuse a layout that would change what a table's optimizer computes.

    Raises:
        InputError: for one number per row where a row is spread over ranks.
    """
    for path, table in embedding_tables(module):
        optimizer = optimizer_in_backward(table_parameter(module, path, table))
        kind = cast("EmbeddingModuleShardingPlan", plan.plan[path])[table.name].sharding_type
        if optimizer is not None and optimizer.state == "row" and kind in ("column_wise", "table_column_wise"):
            raise InputError(
                f"table {table.name!r} is {kind} with an optimizer that keeps one number per row, and would have one "
                "per row and shard",
                "row_wise, table_wise, table_row_wise; or adagrad, sgd",
                "change sharding.types, or set model.optimizer.embedding_optimizer=adagrad",
            )


def describe_plan(plan: ShardingPlan, tables: Sequence[tuple[str, EmbeddingBagConfig]]) -> list[dict[str, Any]]:
    """A plan in plain values: a dictionary per table with its layout and its shards."""
    out = []
    for path, table in tables:
        layout = cast("EmbeddingModuleShardingPlan", plan.plan[path])[table.name]
        shards = cast("EnumerableShardingSpec", layout.sharding_spec).shards
        out.append(
            {
                "module": path,
                "table": table.name,
                "rows": table.num_embeddings,
                "columns": table.embedding_dim,
                "sharding": layout.sharding_type,
                "kernel": layout.compute_kernel,
                "ranks": layout.ranks,
                "shards": [
                    {"offsets": s.shard_offsets, "sizes": s.shard_sizes, "placement": str(s.placement)} for s in shards
                ],
            }
        )
    return out


def plan_lines(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """A plan for people, a line per table."""
    lines = []
    for t in described:
        ranks = sorted({int(s["placement"].split(":")[1].split("/")[0]) for s in t["shards"] if 0 not in s["sizes"]})
        where = f"rank {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} ranks"
        lines.append(f"{t['table']}: {t['rows']:,} × {t['columns']}, {t['sharding']} on {where}, {t['kernel']}")
    return lines


def save_plan(path: Path, described: Sequence[Mapping[str, Any]], device: torch.device, world_size: int) -> None:
    """Write a described plan as JSON, to be read by :func:`load_plan`."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps({"world_size": world_size, "device": device.type, "tables": list(described)}, indent=1)
        )


def load_plan(path: Path, module: nn.Module, device: torch.device, world_size: int) -> ShardingPlan:
    """Read a plan for the tables of a module.

    Raises:
        InputError: if the file is no plan, or one for other tables, another device or another number of processes.
    """
    fix = "leave sharding.plan out to plan anew"
    try:
        saved = json.loads(path.read_text())
        tables = {(t["module"], t["table"]): t for t in saved["tables"]}
        place = (saved["device"], saved["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"sharding.plan={str(path)!r} cannot be read ({type(e).__name__})", "a plan.json of a run", fix
        ) from e
    if place != (device.type, world_size):
        raise InputError(
            f"sharding.plan={str(path)!r} is for {place[1]} processes on {place[0]}",
            f"{world_size} on {device.type}",
            fix,
        )
    mine = {(p, c.name): (c.num_embeddings, c.embedding_dim) for p, c in embedding_tables(module)}
    theirs = {key: (t["rows"], t["columns"]) for key, t in tables.items()}
    for key in mine.keys() | theirs.keys():
        if mine.get(key) != theirs.get(key):
            raise InputError(
                f"sharding.plan={str(path)!r}: table {key[1]!r} is {_size(theirs.get(key))} there and "
                f"{_size(mine.get(key))} here",
                "a plan of the same tables",
                fix,
            )
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for (module_path, name), t in tables.items():
        shards = [ShardMetadata(s["offsets"], s["sizes"], s["placement"]) for s in t["shards"]]
        layout = ParameterSharding(t["sharding"], t["kernel"], t["ranks"], EnumerableShardingSpec(shards))
        plan.setdefault(module_path, EmbeddingModuleShardingPlan())[name] = layout
    return ShardingPlan(cast("Any", plan))


def _size(size: tuple[int, int] | None) -> str:
    return "absent" if size is None else f"{size[0]:,} × {size[1]}"
