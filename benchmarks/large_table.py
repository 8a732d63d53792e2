"""A table of 100 million rows trained by two processes on one machine: ``python benchmarks/large_table.py``.

Nothing but each rank's rows may ever exist. After training, every row of every rank is compared with its start: rows
that were seen must have changed, the others must not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

# Before torch is imported; inherited by the ranks.
os.environ["OMP_NUM_THREADS"] = "1"

import lightning as L
import torch
from machine import hardware, memory, result_file, versions
from torch.utils.data import DataLoader, Dataset
from torchrec import EmbeddingBagConfig
from workload import Workload

import lightning_budget.training.strategy  # registers `torchrec`  # noqa: F401
from lightning_budget.atomic import atomic_path
from lightning_budget.batch import RCTBatch
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.sharding import embedding_tables, init_rows_

RESULTS = Path(__file__).resolve().parent / "results"
RANKS, STEPS, DIM, BATCH_SIZE, SEED = 2, 30, 16, 2048, 0
ROWS, QUICK_ROWS = 100_000_000, 2_000_000
LIMIT_GIB = 24
TIMEOUT = {False: 1500, True: 240}
"""Seconds until hanging ranks are killed, by --quick."""


def workload(rows: int) -> Workload:
    network = {"dense_hidden": [32], "trunk_hidden": [64], "head_hidden": 16}
    return Workload({"user": rows}, DIM, BATCH_SIZE, dense=8, network=network, skew=1.0)


class Batches(Dataset[RCTBatch]):
    """One rank's batches; any rank can draw those of the others."""

    def __init__(self, source: Workload, rank: int) -> None:
        self.source, self.rank = source, rank

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> RCTBatch:
        return self.source.batch(STEPS * self.rank + step)


def seen_ids(source: Workload, step: int) -> torch.Tensor:
    """Rows of the table that all ranks together look up in a step."""
    batches = (Batches(source, rank)[step].sparse for rank in range(RANKS))
    return torch.cat([sparse.values() for sparse in batches if sparse is not None])


class Observer(L.Callback):
    """Times, memory at each stage, and what became of the rows."""

    def __init__(self, source: Workload) -> None:
        self.source = source
        self.stages: dict[str, float] = {"imported": memory("VmRSS")}
        self.ends: list[float] = []
        self.report: dict[str, Any] = {}
        self.begun = time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.begun = time.perf_counter()
        self.stages["before sharding"] = memory("VmRSS")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.report["init_seconds"] = time.perf_counter() - self.begun
        self.stages["tables sharded and started"] = memory("VmRSS")
        self.stages["peak until then"] = memory("VmHWM")
        self.ends.append(time.perf_counter())

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stages["trained"] = memory("VmRSS")
        self.stages["peak"] = memory("VmHWM")
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        self.report |= {"step_seconds": statistics.median(steps[5:]), "steps": len(steps)}
        name = next(k for k in pl_module.state_dict() if k.endswith("embedding_bags.user.weight"))
        shards = pl_module.state_dict()[name].local_shards()
        self.report["shard_gib"] = sum(s.tensor.numel() * s.tensor.element_size() for s in shards) / 2**30
        self.report["rows"] = [[s.metadata.shard_offsets[0], s.tensor.shape[0]] for s in shards]
        self.report |= self.compare(shards, cast("Described", pl_module).table)

    def compare(self, shards: list[Any], table: EmbeddingBagConfig, block: int = 1 << 20) -> dict[str, int]:
        """Compare this rank's rows with their start, which is a function of seed and row."""
        # The heads start at zero, so the first step's gradient of the tables is zero.
        steps = [seen_ids(self.source, step) for step in range(STEPS)]
        trained, touched = torch.cat(steps[1:]).unique(), torch.cat(steps).unique()
        counts = {"compared": 0, "trained": 0, "trained_unchanged": 0, "untouched_changed": 0}
        for shard in shards:
            row0, weight = shard.metadata.shard_offsets[0], shard.tensor
            for first in range(0, weight.shape[0], block):
                now = weight[first : first + block]
                start = torch.empty(now.shape)
                init_rows_(start, table, SEED, row0 + first)
                changed = (now.cpu() != start).any(1)
                for ids, counted, wrong in (
                    (trained, "trained_unchanged", False),
                    (touched, "untouched_changed", True),
                ):
                    mask = torch.zeros(len(changed), dtype=torch.bool)
                    mask[ids[(ids >= row0 + first) & (ids < row0 + first + len(changed))] - row0 - first] = True
                    counts[counted] += int((~mask & changed if wrong else mask & ~changed).sum())
                    counts["trained"] += 0 if wrong else int(mask.sum())
                counts["compared"] += len(changed)
        return counts


class Described(BudgetModule):
    """Remembers the table's config, which sharding takes away."""

    table: EmbeddingBagConfig

    def configure_model(self) -> None:
        super().configure_model()
        ((_, self.table),) = embedding_tables(self)


def run_rank(rows: int, report: Path) -> None:
    """Body of a rank, started with the variables of a launcher."""
    source = workload(rows)
    observer = Observer(source)
    module = Described(source.schema.to_dict(), source.statistics.to_dict(), source.model, embedding_lr=0.05, seed=SEED)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="torchrec",
        max_epochs=1,
        logger=False,
        callbacks=[observer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(Batches(source, trainer.global_rank), batch_size=None, shuffle=False))
    with atomic_path(report.with_name(f"{report.name}{trainer.global_rank}.json")) as path:
        path.write_text(json.dumps(observer.report | {"stages": observer.stages}))


def start_ranks(rows: int, folder: Path, timeout: float) -> list[dict[str, Any]]:
    """Run all ranks to their end and return their reports; a rank that fails or hangs ends all."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, __file__, "--rows", str(rows), "--rank-report", str(folder / "rank")]
    ranks = []
    for rank in range(RANKS):
        launched = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(RANKS)}
        environment = {**os.environ, **launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = (folder / f"{rank}.log").open("w")
        ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
    end = time.monotonic() + timeout
    try:
        while any(r.poll() is None for r in ranks):
            if any(r.poll() for r in ranks) or time.monotonic() > end:
                break
            time.sleep(0.2)
    finally:
        for r in ranks:
            if r.poll() is None:
                os.killpg(r.pid, signal.SIGKILL)
                r.wait()
    if any(r.returncode for r in ranks):
        sys.exit("\n".join(f"rank {i}: {(folder / f'{i}.log').read_text()[-3000:]}" for i in range(RANKS)))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


def failures(reports: list[dict[str, Any]], rows: int) -> list[str]:
    """What does not hold."""
    total = sum(r["stages"]["peak"] for r in reports)
    checks = {
        f"peaks sum to {total:.1f} GiB": total < LIMIT_GIB,
        "not every row was compared": sum(r["compared"] for r in reports) == rows,
        "a rank trained another number of steps": all(r["steps"] == STEPS for r in reports),
        "no row was trained": all(r["trained"] > 0 for r in reports),
        "rows that were trained did not change": all(r["trained_unchanged"] == 0 for r in reports),
        "rows that were never seen changed": all(r["untouched_changed"] == 0 for r in reports),
    }
    return [text for text, holds in checks.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, under a minute, nothing written")
    parser.add_argument("--rows", type=int, help=f"of the table; default {ROWS:,}")
    parser.add_argument("--rank-report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    if arguments.rank_report:
        run_rank(rows, arguments.rank_report)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        reports = start_ranks(rows, Path(folder), TIMEOUT[arguments.quick])
    stages = list(reports[0]["stages"])
    lines = [
        f"# A table of {rows:,} rows × {DIM} on {RANKS} processes",
        "",
        f"{STEPS} steps of {RANKS} × {BATCH_SIZE:,} rows, ids spread evenly; float32, row-wise Adagrad; gloo. Table "
        f"{rows * DIM * 4 / 2**30:.2f} GiB, its optimizer state {rows * 4 / 2**30:.2f} GiB.",
        "",
        "| resident memory, GiB | " + " | ".join(f"rank {i}" for i in range(RANKS)) + " | all |",
        "|---|" + "---|" * (RANKS + 1),
    ]
    for stage in stages:
        values = [r["stages"][stage] for r in reports]
        lines.append(f"| {stage} | " + " | ".join(f"{v:.2f}" for v in values) + f" | {sum(values):.2f} |")
    shards = ", ".join(f"{r['shard_gib']:.2f}" for r in reports)
    trained, compared = (sum(r[k] for r in reports) for k in ("trained", "compared"))
    failed = failures(reports, rows)
    lines += [
        "",
        f"Shards {shards} GiB. Start-up {max(r['init_seconds'] for r in reports):.1f} s, a step "
        f"{1e3 * max(r['step_seconds'] for r in reports):.0f} ms (median, elapsed).",
        f"Of {compared:,} rows compared with their start, the {trained:,} that were trained changed and "
        f"{'no other did' if not failed else 'see below'}.",
        "",
        f"{hardware()}; one thread per process; {versions()}",
        "",
        f"falls short: {'; '.join(failed)}" if failed else "holds",
    ]
    print("\n".join(lines))
    if not arguments.quick and arguments.rows is None:
        with atomic_path(result_file(RESULTS, "large_table")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
