"""Criteo-MT7 as a Parquet file, from Criteo's features or the campaign's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError
from lightning_budget.published.criteo import CRITEO, FEATURES
from lightning_budget.published.mt7 import ARMS, Surface, draws, observed, sample_rows, standardized
from lightning_budget.published.prepare import Prepared, Progress, no_progress, stage, workplace
from lightning_budget.published.row_groups import ROW_GROUP, RowGroups

ROWS = 500_000
SEED = 42
SURFACE = Surface()

Floats = NDArray[np.float64]


def criteo_mt7(
    path: Path,
    output: Path,
    rows: int = ROWS,
    seed: int = SEED,
    force: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Generate Criteo-MT7 from Criteo's file, which is checked as ``criteo`` is.

    Args:
        path: the publisher's file, or Parquet made of it.
        rows: users sampled from it; all of them where it has no more.
        seed: of the sample, the directions and all outcomes.

    Raises:
        InputError: for a file that cannot be read as Criteo's.
    """
    _check(rows, seed)
    with workplace(output) as folder:
        staged = folder / "staged.parquet"
        found = stage(CRITEO, path, staged, progress)
        if not found.passed and not force:
            return found
        with pyarrow.parquet.ParquetFile(staged) as file:
            index = sample_rows(np.random.default_rng(seed), file.metadata.num_rows, rows)
            x = _features(file, index)
        remark = f"{len(x):,} users sampled from {found.rows:,}"
        about = {"data": "criteo_mt7", "seed": seed, "licence": CRITEO.licence, "citation": CRITEO.citation}
        _write(x, FEATURES, output, seed, about, progress)
    return Prepared(output, len(x), found.rows - len(x), found.checks, (remark, *_summary(output)))


def campaign_mt7(
    output: Path,
    rows: int = ROWS,
    seed: int = SEED,
    progress: Progress = no_progress,
    surface: Surface = SURFACE,
) -> Prepared:
    """Generate the same outcomes from the numbers that the embedded campaign knows of its users.

    Args:
        surface: other constants make another trial.

    Raises:
        InputError: for no rows.
    """
    # Imported where it runs: it brings TorchRec with it.
    from lightning_budget.campaign import Campaign

    _check(rows, seed)
    campaign = Campaign(train_rows=rows, seed=seed)
    x = np.concatenate([campaign.partition("train", i).dense.numpy() for i in range(campaign.partitions("train"))])
    with workplace(output):
        about = {"data": "campaign_mt7", "seed": seed}
        _write(x.astype(np.float64), campaign.schema.dense, output, seed, about, progress, surface)
    return Prepared(output, len(x), 0, (), _summary(output))


def _check(rows: int, seed: int) -> None:
    if rows < 1 or seed < 0:
        what = f"--rows {rows}" if rows < 1 else f"--seed {seed}"
        raise InputError(what, "rows ≥ 1 and a seed ≥ 0", "--rows 500000 --seed 42 are the defaults")


def _features(file: pyarrow.parquet.ParquetFile, index: NDArray[np.int64]) -> Floats:
    parts, first = [], 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, columns=list(FEATURES))
        low, high = np.searchsorted(index, [first, first + len(table)])
        kept = index[low:high] - first
        parts.append(np.stack([table[name].to_numpy()[kept] for name in FEATURES], 1))
        first += len(table)
    return np.concatenate(parts)


def _write(
    x: Floats,
    names: tuple[str, ...],
    output: Path,
    seed: int,
    about: dict[str, object],
    progress: Progress,
    surface: Surface = SURFACE,
) -> None:
    rng = np.random.default_rng(seed)
    x = standardized(x)
    to = surface.directions(rng, x.shape[1])
    drawn = draws(rng, len(x), surface.sigma)
    advance = progress(f"writing {output.name}", len(x))
    with atomic_path(output) as target, RowGroups(target, about) as groups:
        for first in range(0, len(x), ROW_GROUP):
            rows = slice(first, first + ROW_GROUP)
            part = x[rows]
            buys, value, cost = observed(part, to, surface, drawn, rows)
            true_value, true_cost = surface.expected(part, to)
            columns = {name: part[:, i] for i, name in enumerate(names)}
            columns |= {"treatment": np.array(ARMS)[drawn.arm[rows]], "conversion": buys.astype(np.int8)}
            columns |= {"value": value, "cost": cost}
            columns |= {f"true_value_{j}": true_value[:, j] for j in range(len(ARMS))}
            columns |= {f"true_cost_{j}": true_cost[:, j] for j in range(len(ARMS))}
            groups.add(pa.table({name: _typed(column) for name, column in columns.items()}))
            advance(len(part))


def _typed(column: NDArray) -> pa.Array:
    return pa.array(column.astype(np.float32) if column.dtype == np.float64 else column)


def _summary(output: Path) -> tuple[str, ...]:
    table = pyarrow.parquet.read_table(output, columns=["value", "cost", "conversion"])
    value, cost, buys = (
        float(table[name].to_numpy().astype(np.float64).mean()) for name in ("value", "cost", "conversion")
    )
    return (f"{buys:.1%} of users buy; mean value {value:.4g}, mean cost {cost:.4g}",)
