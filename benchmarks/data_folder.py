"""A folder of a campaign's partitions for ``data.py``, and what reading it takes."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import torch
from machine import memory

from datamodules import ParquetRCTDataModule
from lightning_budget.campaign import Campaign
from lightning_budget.table import IdList

USERS, FILE_ROWS, GROUP_ROWS = 200_000, 500_000, 125_000
DENSE = ("recency", "log_frequency", "basket", "app_minutes")
CATEGORICAL, LISTS = ("user_id", "city", "tier"), ("viewed",)
COLUMNS = (*CATEGORICAL, *LISTS, *DENSE, "arm", "value", "cost", "propensity")
"""Twelve, one of them lists: the user is read as a feature and as the user."""
BATCH, BUFFER = 8_192, 1 << 20
KEPT = 200_000
"""Rows of each split kept in memory by the measurement of memory."""


def write_partitions(folder: Path, count: int) -> list[Path]:
    """Partitions of a campaign as Parquet files."""
    folder.mkdir(parents=True)
    campaign = Campaign(train_rows=count * FILE_ROWS, users=USERS, partition_rows=FILE_ROWS)
    arms = np.array(campaign.schema.treatments)
    paths = []
    for i in range(count):
        rows = campaign.partition("train", i)
        found: dict[str, Any] = {"arm": pa.array(arms[rows.treatment.numpy()])}
        for name in (*CATEGORICAL, *LISTS):
            column = rows.ids[name]
            if isinstance(column, IdList):
                offsets, values = (x.numpy().astype(np.int32) for x in (column.offsets, column.values))
                found[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
            else:
                found[name] = column.numpy()
        dense = dict(zip(campaign.schema.dense, rows.dense.unbind(1), strict=True))
        found |= {name: dense[name].numpy() for name in DENSE}
        found |= {name: getattr(rows, name).numpy() for name in ("value", "cost", "propensity")}
        paths.append(folder / f"part-{i:05d}.parquet")
        pyarrow.parquet.write_table(pa.table(found).select(list(COLUMNS)), paths[-1], row_group_size=GROUP_ROWS)
    return paths


def repeat_partitions(paths: list[Path], folder: Path, rows: int) -> Path:
    """A folder of so many rows: the files again and again under other names, as hard links."""
    folder.mkdir(parents=True)
    for i in range(rows // FILE_ROWS):
        os.link(paths[i % len(paths)], folder / f"part-{i:05d}.parquet")
    return folder


def module(folder: Path, **changes: Any) -> ParquetRCTDataModule:
    """Nearly all rows train, so that rows delivered are rows read."""
    arms = Campaign().schema.treatments
    settings: dict[str, Any] = {
        "treatment": "arm",
        "arms": arms,
        "value": "value",
        "cost": "cost",
        "propensity": "propensity",
        "dense": DENSE,
        "categorical": CATEGORICAL,
        "lists": LISTS,
        "user": "user_id",
        "split": [0.98, 0.01, 0.01],
        "check_shares": 0,
        "batch_size": BATCH,
        "buffer_rows": BUFFER,
        "cache": None,
        "sample_rows": KEPT,
        "eval_rows": KEPT,
    }
    return ParquetRCTDataModule(str(folder), **{**settings, **changes})


@dataclass
class Speeds:
    """Rows a second of each round, and a second of processor time."""

    plain: list[float]
    plain_cpu: list[float]
    pipeline: list[float]
    pipeline_cpu: list[float]
    scan: float


def speeds(folder: Path, rounds: int) -> Speeds:
    """Body of a process: a plain read of the same columns, and an epoch of batches, in turns."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pa.set_cpu_count(os.cpu_count() or 1)
    start = time.perf_counter()
    data = module(folder)
    data.setup()
    found = Speeds([], [], [], [], sum(data.rows.values()) / (time.perf_counter() - start))
    loader = data.train_dataloader()
    for number in range(rounds + 1):
        loader.sampler.set_epoch(number)
        plain, pipeline = timed(lambda: plain_read(folder)), timed(lambda: sum(map(len, loader)))
        # The first round brings the files into the cache of the system.
        if number:
            found.plain.append(plain[0])
            found.plain_cpu.append(plain[1])
            found.pipeline.append(pipeline[0])
            found.pipeline_cpu.append(pipeline[1])
    return found


def timed(read: Any) -> tuple[float, float]:
    """Rows a second, and a second of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = read()
    return rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)


def plain_read(folder: Path) -> int:
    """Rows of the folder, decoded and dropped."""
    data = pyarrow.dataset.dataset(str(folder), format="parquet")
    return sum(batch.num_rows for batch in data.to_batches(columns=list(COLUMNS)))


def peak(folder: Path) -> tuple[float, int, float, float]:
    """Body of a process: scan a folder and read an epoch of it.

    Returns:
        MiB at the peak above what the process had before, rows of the folder, and rows a second of scan and epoch.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, start = memory("VmRSS"), time.perf_counter()
    data = module(folder)
    data.setup()
    rows, between = sum(data.rows.values()), time.perf_counter()
    read = sum(map(len, data.train_dataloader()))
    assert read == data.rows["train"]
    after = time.perf_counter()
    return 1024 * (memory("VmHWM") - before), rows, rows / (between - start), read / (after - between)
