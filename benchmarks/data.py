"""Streamed rows beside a plain read, beside the training step, and in memory: ``python benchmarks/data.py``.

Twelve columns of the embedded campaign, one of lists, in Parquet files; ``--quick`` is done in a minute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported; inherited by every process.
os.environ["OMP_NUM_THREADS"] = "1"

import estimator_cost
from data_folder import (
    BATCH,
    BUFFER,
    COLUMNS,
    FILE_ROWS,
    GROUP_ROWS,
    KEPT,
    peak,
    repeat_partitions,
    speeds,
    write_partitions,
)
from estimator_tables import Claims, ratios, spread, table
from machine import hardware, result_file, versions
from own_process import ROOT, in_own_process

from lightning_budget.atomic import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
LEAST_SHARE = 0.5
GROWTH = 128.0
"""MiB that ten times the rows may add; 90 million more rows would be some 8,000 as columns in memory."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        partitions: different files; read: rows that are read in turns, several windows; rounds: of reading them.
        steps: rounds of training steps.
        few, many: rows of the folders whose peaks of memory are compared.
    """

    partitions: int
    read: int
    rounds: int
    steps: int
    few: int
    many: int


FULL = Plan(partitions=16, read=16_000_000, rounds=7, steps=8, few=10_000_000, many=100_000_000)
QUICK = Plan(partitions=4, read=6_000_000, rounds=3, steps=2, few=3_000_000, many=6_000_000)


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def default_steps(rounds: int) -> list[float]:
    """Body of a process: seconds of a training step of the default model without a goal."""
    estimator_cost.BATCH = BATCH
    estimator_cost.OBJECTIVES.clear()
    return estimator_cost.take_turns(rounds, 2, 4).steps[estimator_cost.PLAIN]


def speed_part(folder: Path, plan: Plan, claims: Claims) -> list[str]:
    """Rows a second beside ``pyarrow.dataset`` and the training step."""
    say("reading in turns")
    found = in_own_process(speeds, folder, plan.rounds)
    say("training steps")
    steps = in_own_process(default_steps, plan.steps)
    wall, cpu = ratios(found.pipeline, found.plain), ratios(found.pipeline_cpu, found.plain_cpu)
    step_cpu = [BATCH / s for s in steps]
    share = statistics.median(step_cpu) / statistics.median(found.pipeline_cpu)
    claims.state(
        f"rows/s of the pipeline alone over those of a plain read: {spread(wall)}, at least {LEAST_SHARE:g}",
        statistics.median(wall) >= LEAST_SHARE,
    )
    claims.state(
        f"processor time of a batch of {BATCH:,} rows over that of its training step: {share:.2f}, at most 1",
        share <= 1,
    )

    def million(values: list[float]) -> str:
        return spread([v / 1e6 for v in values])

    return [
        "## Rows a second",
        "",
        f"{plan.read:,} rows in files of {FILE_ROWS:,}, row groups of {GROUP_ROWS:,}, "
        f"{len(COLUMNS)} columns; windows of {BUFFER:,} rows, batches of {BATCH:,}; {plan.rounds} rounds in turns, "
        "medians and (quartiles). The plain read decodes the columns on all cores and drops them. The step is the "
        "default model's on the campaign, without a goal, in processor time on one thread.",
        "",
        *table(
            ["", "million rows/s", "million rows per second of processor time"],
            [
                ["pyarrow.dataset, to_batches", million(found.plain), million(found.plain_cpu)],
                ["pipeline: read, encode, shuffle, collate", million(found.pipeline), million(found.pipeline_cpu)],
                ["pipeline over plain read", spread(wall), spread(cpu)],
                ["the scan before the first epoch", f"{found.scan / 1e6:.2f}", "–"],
                ["training step", "–", million(step_cpu)],
            ],
        ),
    ]


def memory_part(paths: list[Path], folder: Path, plan: Plan, claims: Claims) -> list[str]:
    """Peaks of scan and epoch over few and many rows."""
    rows, peaks = [], []
    for count in (plan.few, plan.many):
        say(f"peak of memory over {count:,} rows")
        mib, seen, scanned, read = in_own_process(peak, repeat_partitions(paths, folder / str(count), count))
        peaks.append(mib)
        rows.append([f"{seen:,}", f"{mib:,.0f}", f"{scanned / 1e6:.2f}", f"{read / 1e6:.2f}"])
    growth = peaks[1] - peaks[0]
    claims.state(
        f"{plan.many / plan.few:g} times the rows, {plan.many:,}: peak memory {growth:+.0f} MiB, at most {GROWTH:+g}",
        growth <= GROWTH,
    )
    return [
        "## Memory",
        "",
        f"Scan and one epoch in a process of its own, {KEPT:,} rows of each split kept; peak above what the process "
        f"had before. The {plan.partitions} files stand there again and again under other names: their users come "
        "again, which changes neither what is read nor what is kept.",
        "",
        *table(["rows", "peak, MiB", "scan, million rows/s", "epoch, million rows/s"], rows),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under a minute, nothing written")
    arguments = parser.parse_args()
    plan, claims = QUICK if arguments.quick else FULL, Claims()
    with tempfile.TemporaryDirectory() as name:
        say("generating")
        folder = Path(name)
        paths = write_partitions(folder / "distinct", plan.partitions)
        read = repeat_partitions(paths, folder / "read", plan.read)
        lines = ["# Streamed rows", "", *speed_part(read, plan, claims)]
        lines += memory_part(paths, folder, plan, claims)
    lines += ["## Limits", "", *claims.lines, "", f"{hardware()}; {versions()}", "", claims.verdict]
    print("\n".join(lines))
    if not arguments.quick:
        with atomic_path(result_file(RESULTS, "data")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if claims.failed else 0


if __name__ == "__main__":
    sys.exit(main())
