"""Allocation from Parquet to Parquet beside reading the same columns: ``python benchmarks/allocation_stream.py``.

Speed is that of the scan against pyarrow's own of the same files in the same process, taken in turns, and of the whole
job; memory is the peak of a process that does nothing else. Processes share the cores: torch has one thread in each, as
on the command line, and pyarrow the cores that are its share.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import torch
from machine import hardware, memory, versions

from lightning_budget.streaming import Request, allocate_files
from lightning_budget.streaming.predictions import prediction_columns
from lightning_budget.streaming.ranks import joined
from lightning_budget.streaming.source import open_source
from lightning_budget.streaming.work import workplace

USERS, QUICK_USERS = 100_000_000, 2_000_000
LEAST_RATIO, MOST_GIB = 0.5, 2.0
TREATMENTS = 5
PARTITION = 1_000_000
BUDGET = 0.2
"""Currency per user."""


@dataclass
class Stream:
    """What jobs over one folder took.

    Attributes:
        read: seconds in which pyarrow scans all columns, each time; read_cpu: of processor time.
        scan: seconds of our pass, sample and spools included; job_cpu: of processor time for the whole job.
        whole: seconds from the first footer to the last output.
        parts: the seconds of each part of the last job.
        peak_gib: memory of the process at its peak; imported_gib: once everything was imported.
        certificate: of the last job.
    """

    users: int
    processes: int = 1
    read: list[float] = field(default_factory=list)
    read_cpu: list[float] = field(default_factory=list)
    scan: list[float] = field(default_factory=list)
    job_cpu: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    imported_gib: float = 0.0
    peak_gib: float = 0.0
    certificate: dict[str, float] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Our rows per second over pyarrow's, each pair taken in turn, from the least."""
        return sorted(r / s for r, s in zip(self.read, self.scan, strict=True))

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)


def write_users(folder: Path, users: int) -> None:
    """Partitions of a million users with a free control and noisy, partly dominated treatments, uncompressed.

    Raises:
        SystemExit: if the disk has too little room.
    """
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < 100 * users:
        sys.exit(f"{users:,} users need {100 * users / 1e9:.0f} GB in {folder}")
    for part, start in enumerate(range(0, users, PARTITION)):
        n = min(PARTITION, users - start)
        draw = np.random.default_rng(part)
        cost = np.zeros((TREATMENTS, n), np.float32)
        draw.random(out=cost[1:], dtype=np.float32)
        cost.cumsum(0, out=cost)
        value = 2 * draw.random(n, dtype=np.float32) * np.sqrt(cost)
        value += np.float32(0.3) * draw.standard_normal((TREATMENTS, n), dtype=np.float32)
        columns = {"user_id": np.arange(start, start + n)}
        columns |= {f"value_{j}": value[j] for j in range(TREATMENTS)}
        columns |= {f"cost_{j}": cost[j] for j in range(TREATMENTS)}
        path = folder / f"part-{part:05d}.parquet"
        pyarrow.parquet.write_table(pa.table(columns), path, use_dictionary=False, compression="none")


def read_all(folder: Path) -> int:
    """Rows that pyarrow finds when it scans all columns."""
    return sum(batch.num_rows for batch in pyarrow.dataset.dataset(folder).to_batches())


def one_rank(folder: Path, output: Path, repeats: int, read: bool) -> Stream:
    """Jobs of this process and those that it is joined with; before each, pyarrow's scan."""
    with joined() as ranks:
        found = Stream(0, ranks.size, imported_gib=memory("VmRSS"))
        cores = os.cpu_count() or 1
        for _ in range(repeats):
            if read and ranks.rank == 0:
                pa.set_cpu_count(cores)
                start, busy = time.perf_counter(), time.process_time()
                read_all(folder)
                found.read.append(time.perf_counter() - start)
                found.read_cpu.append(time.process_time() - busy)
            pa.set_cpu_count(max(cores // ranks.size, 1))
            ranks.gather(None)
            start, busy = time.perf_counter(), time.process_time()
            with workplace(output, ranks):
                source = ranks.first(lambda: open_source(folder))
                scorer = prediction_columns(source, "user_id", None, None, None)
                request = Request(output, BUDGET * source.rows, threads=max(cores // ranks.size, 1), shown=False)
                result = allocate_files(source, scorer, request, ranks)
            found.whole.append(time.perf_counter() - start)
            found.job_cpu.append(time.process_time() - busy)
            found.users, found.parts, found.certificate = source.rows, result.seconds, result.certificate
            found.scan.append(result.seconds["Scanning"] + result.seconds.get("Sampling", 0.0))
        found.peak_gib = memory("VmHWM")
        return found


def measure(folder: Path, processes: int, repeats: int, read: bool) -> Stream:
    """Rank 0's figures of jobs in processes of their own; the peak is the largest of all."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        for rank in range(processes):
            place = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = {**os.environ, **{k: str(v) for k, v in place.items()}, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--rank", str(folder), str(Path(room) / "out"), str(repeats)]
            started.append(subprocess.Popen([*command, str(int(read))], env=env, stdout=subprocess.PIPE, text=True))
        texts = [p.communicate()[0] for p in started]
    if any(p.returncode for p in started):
        sys.exit("a process died, see above")
    ranks = [Stream(**json.loads(text.splitlines()[-1])) for text in texts]
    ranks[0].peak_gib = max(r.peak_gib for r in ranks)
    ranks[0].job_cpu = [sum(x) for x in zip(*(r.job_cpu for r in ranks), strict=True)]
    return ranks[0]


def allocation_stream(users: int, repeats: int, folder: Path | None = None) -> list[Stream]:
    """Users on disk, allocated by one process and by two."""
    with tempfile.TemporaryDirectory(dir=folder) as room:
        data = Path(room) / "in"
        write_users(data, users)
        # Memory is measured where pyarrow's own scan does not count.
        found = []
        for processes in (1, 2):
            alone = measure(data, processes, 1, read=False)
            found.append(measure(data, processes, repeats, read=True))
            found[-1].peak_gib, found[-1].imported_gib = alone.peak_gib, alone.imported_gib
    return found


def show(found: Stream) -> str:
    """The figures in a few lines."""
    n, seconds = found.users, {k: f"{s:.1f} s" for k, s in found.parts.items()}
    spread = f"{found.ratio:.2f} ({found.ratios[0]:.2f} … {found.ratios[-1]:.2f})"
    read_cpu, job_cpu = (1e9 * median(x) / n for x in (found.read_cpu, found.job_cpu))
    return "\n".join(
        [
            f"{n:,} users × {TREATMENTS}, {found.processes} process(es)",
            f"  pyarrow reads       {n / median(found.read):12,.0f} rows/s ({read_cpu:.0f} ns CPU)",
            f"  sample and scan     {n / median(found.scan):12,.0f} rows/s, {spread} × pyarrow",
            f"  whole job           {n / median(found.whole):12,.0f} rows/s ({job_cpu:.0f} ns CPU)",
            f"  parts of the last   {', '.join(f'{k} {s}' for k, s in seconds.items())}",
            f"  peak memory         {found.peak_gib:.2f} GiB, of which {found.imported_gib:.2f} before the first row",
            f"  relative gap        {found.certificate['relative_gap']:.1e}",
        ]
    )


def shortfalls(streams: list[Stream]) -> list[str]:
    """What misses its limit."""
    short = [f"the scan at {x.ratio:.2f} × pyarrow" for x in streams if x.ratio < LEAST_RATIO]
    return short + [f"peak memory of {x.peak_gib:.2f} GiB" for x in streams if x.peak_gib > MOST_GIB]


def report(quick: bool) -> tuple[list[str], list[str]]:
    """Lines of text, and what falls short; at 1e8 users some 4 GB in a temporary folder."""
    streams = allocation_stream(QUICK_USERS, 1) if quick else allocation_stream(USERS, 3)
    return ["## From Parquet to Parquet", "", "```", *map(show, streams), "```"], shortfalls(streams)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=float, default=USERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room on a disk")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_USERS:,} users, once")
    parser.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        torch.set_num_threads(1)
        folder, output, repeats, read = arguments.rank
        print(json.dumps(one_rank(Path(folder), Path(output), int(repeats), bool(int(read))).__dict__))
        return 0
    users, repeats = (QUICK_USERS, 1) if arguments.quick else (int(arguments.users), arguments.repeats)
    streams = allocation_stream(users, repeats, arguments.folder)
    print("\n".join([f"{hardware()}; {versions()}; pyarrow {pa.__version__}", *map(show, streams)]))
    short = shortfalls(streams)
    print(f"falls short: {'; '.join(short)}" if short else "holds")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
