"""Users on disk in partitions, jobs over them in this process or in several, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from lightning_budget.allocation import Allocation, allocate, search, shared_search
from lightning_budget.streaming import Request, Result, allocate_files, job, scan, source
from lightning_budget.streaming.predictions import prediction_columns
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.source import open_source
from lightning_budget.streaming.work import workplace
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
BATCH = 257


def small(setattr_: Callable[[Any, str, Any], None]) -> None:
    """Make a few thousand users many."""
    setattr_(source, "PIECE_ROWS", 700)
    setattr_(job, "ALL_OPEN", 0)
    setattr_(scan, "SAMPLE_USERS", 2048)
    setattr_(search, "FINISH_USERS", 200)
    setattr_(shared_search, "MOST_GATHERED", 300)


@dataclass(frozen=True)
class Small:
    """Value and cost ``[N, K]`` and ids ``[N]``."""

    value: Tensor
    cost: Tensor
    ids: Tensor

    @classmethod
    def draw(cls, n: int, k: int, dtype: torch.dtype = torch.float32, grid: bool = False) -> Small:
        from tests.allocation.reference import random_problem

        value, cost = random_problem(n + k, n, k, grid)
        ids = torch.randperm(10 * n, generator=torch.Generator().manual_seed(n))[:n] - n
        return cls(value.to(dtype), cost.to(dtype), ids)

    @property
    def budget(self) -> float:
        free = float(self.cost.double().gather(1, self.value.argmax(1)[:, None]).sum())
        least = float(self.cost.double().amin(1).sum())
        return least + 0.3 * (free - least)

    def select(self, rows: Tensor) -> Small:
        return Small(self.value[rows], self.cost[rows], self.ids[rows])

    def table(self, ids: pa.Array | None = None) -> pa.Table:
        columns: dict[str, Any] = {"user_id": pa.array(self.ids.numpy()) if ids is None else ids}
        for name, x in (("value", self.value), ("cost", self.cost)):
            columns |= {f"{name}_{j}": x[:, j].contiguous().numpy() for j in range(x.shape[1])}
        return pa.table(columns)

    def write(self, path: Path, parts: int, group: int = 300) -> Path:
        """A folder of so many partitions of unlike sizes."""
        cuts = np.sort(np.random.default_rng(parts).integers(0, len(self.ids), parts - 1))
        for i, (a, z) in enumerate(zip([0, *cuts], [*cuts, len(self.ids)], strict=True)):
            name = path / (f"day={i % 2}/part-{i}.parquet" if parts > 2 else f"part-{i}.parquet")
            name.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(self.table().slice(a, z - a), name, row_group_size=group)
        return path

    def in_memory(self, budget: float | None = None) -> Allocation:
        return allocate(self.value, self.cost, self.budget if budget is None else budget, key=self.ids)


def run(path: Path, output: Path, budget: float, ranks: Ranks | None = None, **changes: Any) -> Result:
    """A job in this process."""
    ranks = Ranks() if ranks is None else ranks
    columns = {name: changes.pop(name, None) for name in ("value_columns", "cost_columns", "treatments")}
    with workplace(output, ranks):
        found = ranks.first(lambda: open_source(path))
        scorer = prediction_columns(found, "user_id", *columns.values())
        request = replace(Request(output, budget, batch_rows=BATCH, shown=False), **changes)
        return allocate_files(found, scorer, request, ranks)


def arms(output: Path) -> dict[Any, int]:
    """Treatment of every user."""
    files = sorted(output.rglob("*.parquet")) if output.is_dir() else [output]
    tables = [pyarrow.parquet.ParquetFile(f).read() for f in files]
    return {u: t for x in tables for u, t in zip(x["user_id"].to_pylist(), x["treatment"].to_pylist(), strict=True)}


def expected_arms(users: Small, budget: float | None = None) -> dict[int, int]:
    return dict(zip(users.ids.tolist(), users.in_memory(budget).assignment.tolist(), strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def processes(size: int, jobs: list[dict[str, Any]], folder: Path, timeout: float = 120) -> list[tuple[int, str]]:
    """Exit code and output of every rank of jobs run one after another, see ``rank.py``."""
    described = folder / f"jobs-{size}.json"
    described.write_text(json.dumps(jobs))
    port = free_port()
    started = []
    for rank in range(size):
        place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in place.items()}}
        started.append(Forked([Path(__file__).with_name("rank.py"), described], env))
    try:
        texts = [p.communicate(timeout=timeout)[0] for p in started]
    finally:
        for p in started:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
                p.communicate()
    return [(p.returncode, text) for p, text in zip(started, texts, strict=True)]
