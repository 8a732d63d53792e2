"""What a machine can hold, without the machine: ``python scripts/plan.py users=1e9 embedding_dim=64 ranks=8``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console, ConsoleDimensions

from lightning_budget import cli
from lightning_budget.atomic import atomic_path
from lightning_budget.cli.build import check_can_be_made, quiet
from lightning_budget.errors import InputError
from lightning_budget.training.capacity import Job, Machine, Plan, Table, plan
from lightning_budget.training.capacity.description import GIB, count, size
from lightning_budget.training.capacity.figure import memory_figure
from lightning_budget.training.capacity.render import (
    SWEEP_HEADER,
    markdown,
    memory_table,
    sweep_row,
    tables_table,
    traffic_table,
)

WIDTH = 124
SUFFIXES = {"output": (".json",), "picture": (".png", ".svg")}


def whole(key: str, value: Any) -> int:
    """A count that may be written 1e9."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InputError(f"{key}={value!r}", "a whole number, such as 1e9 or 250000", "round it")
    return int(value)


def described_table(name: str, spec: Any, dim: int) -> Table:
    """A table of ``tables``: its rows, or a mapping with rows, ids and dim."""
    if not isinstance(spec, Mapping):
        spec = {"rows": spec}
    if not {"rows"} <= set(spec) <= {"rows", "ids", "dim"}:
        raise InputError(f"tables.{name} with keys {sorted(spec)}", "rows, and ids and dim if need be", "name its rows")
    ids = spec.get("ids", 1)
    if isinstance(ids, bool) or not isinstance(ids, int | float):
        raise InputError(f"tables.{name}.ids={ids!r}", "a mean number of ids per row of data", "give a number")
    return Table(
        name, whole(f"tables.{name}.rows", spec["rows"]), whole(f"tables.{name}.dim", spec.get("dim", dim)), ids
    )


def machine_of(cfg: DictConfig) -> Machine:
    """The machine of the config."""
    amounts = {name: cfg[key] * GIB for name, key in (("intra", "intra_gib_s"), ("inter", "inter_gib_s"))}
    return Machine(
        cfg.ranks,
        cfg.ranks_per_node,
        hbm=int(cfg.hbm_gib * GIB),
        ddr=int(cfg.node_ddr_gib * GIB),
        host=cfg.host_gib_s * GIB,
        device=cfg.device,
        **amounts,
    )


def job_of(cfg: DictConfig) -> Job:
    """The tables of the config and how they are trained."""
    tables = [] if cfg.users is None else [Table("user_id", whole("users", cfg.users), cfg.embedding_dim)]
    more = OmegaConf.to_container(cfg.tables, resolve=True) if OmegaConf.is_config(cfg.tables) else cfg.tables or {}
    if not isinstance(more, dict):
        raise InputError(f"tables={more!r}", "tables by name, with their rows", "tables={city:1e5}")
    tables += [described_table(str(name), spec, cfg.embedding_dim) for name, spec in more.items()]
    return Job(
        tables,
        batch_size=cfg.batch_size,
        optimizer=cfg.optimizer,
        precision=cfg.precision,
        dense_parameters=whole("dense_parameters", cfg.dense_parameters),
        user_history=cfg.user_history,
        sharding=list(cfg.sharding),
        kernels=list(cfg.kernels),
        cache_load_factor=cfg.cache_load_factor,
    )


def output_path(cfg: DictConfig, key: str) -> Path | None:
    """Where ``output`` or ``picture`` goes; refused before any work if it cannot be written."""
    if cfg[key] is None:
        return None
    path = Path(cfg[key]).expanduser().absolute()
    if path.suffix not in SUFFIXES[key]:
        raise InputError(
            f"{key}={cfg[key]!r}", f"a file ending in {' or '.join(SUFFIXES[key])}", f"{key}=plan{SUFFIXES[key][0]}"
        )
    check_can_be_made(path.parent, key)
    return path


def sweep(cfg: DictConfig, machine: Machine, job: Job) -> str:
    """The grid as Markdown; what fits nowhere says what would."""
    rows = []
    for users, dim, ranks in itertools.product(cfg.grid.users, cfg.grid.embedding_dim, cfg.grid.ranks):
        tables = [Table("user_id", whole("grid.users", users), dim), *(t for t in job.tables if t.name != "user_id")]
        larger, other = replace(machine, ranks=ranks), replace(job, tables=tables)
        other.check_runs_on(larger)
        try:
            rows.append(sweep_row(plan(larger, other)))
        except InputError as error:
            fix = str(error).rpartition("; fix: ")[2]
            rows.append([count(users), str(dim), str(ranks), f"**none**; {fix} fits"])
    return markdown(SWEEP_HEADER, rows)


def show(result: Plan) -> None:
    """Print the plan."""
    machine, job = result.machine, result.job
    console = Console(highlight=False)
    # A narrower table would cut names and numbers off; the terminal folds long lines instead.
    console.size = ConsoleDimensions(max(console.width, WIDTH), console.height)
    memory = f" with {size(machine.hbm)} HBM each" if machine.device == "cuda" else ""
    console.print(
        f"{machine.ranks} ranks of {machine.device}{memory}, {machine.local_ranks} a node with {size(machine.ddr)} of "
        f"host memory. {job.precision} tables, {job.optimizer}, global batch {job.batch_size:,}.\n"
        "Estimates of TorchRec's planner; nothing was run on such a machine.",
        markup=False,
        soft_wrap=True,
    )
    for table in (tables_table(result), memory_table(result), traffic_table(result)):
        console.print(table)


@cli.main("plan")
def main(cfg: DictConfig) -> None:
    """Describe, plan, print, write."""
    quiet()
    output, picture = output_path(cfg, "output"), output_path(cfg, "picture")
    machine, job = machine_of(cfg), job_of(cfg)
    if cfg.sweep:
        print(sweep(cfg, machine, job))
    else:
        result = plan(machine, job)
        show(result)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(output) as temporary:
                temporary.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")
            print(f"Plan: {output}")
    if picture is not None:
        job.check_runs_on(machine)
        figure = memory_figure(machine, job, [whole("grid.users", users) for users in cfg.grid.users])
        picture.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(picture) as temporary:
            figure.savefig(temporary, format=picture.suffix[1:])
        print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
