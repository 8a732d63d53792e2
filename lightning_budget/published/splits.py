"""The 60/10/30 split of CRITEO-UPLIFT v2.1 that DFCL published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
SEED = 20220720
PRINTED = "f8c1e6c1a3fd7eb7caed7ab0e0ebc8f972646f302ba806e68b76ba6f02a9b998"
"""SHA-256 of what DFCL's notebook prints of its shuffle, see :func:`shuffle_digest`."""


def shuffle(rows: int, seed: int = SEED) -> NDArray[np.int64]:
    """``[N]`` numbers of the file's rows in the order of DFCL's shuffle.

    The published code shuffles with ``DataFrame.sample(frac=1.0, random_state=20220720)`` of pandas, which is the
    permutation of numpy's legacy generator.
    """
    return np.random.RandomState(seed).permutation(rows)


def shuffled_position(rows: int, seed: int = SEED) -> NDArray[np.int64]:
    """``[N]`` where each row of the file lands in DFCL's shuffle."""
    position = np.empty(rows, np.int64)
    position[shuffle(rows, seed)] = np.arange(rows)
    return position


def bounds(rows: int, *shares: float) -> list[int]:
    """Positions where cumulative shares end, each cut to a whole number as in the published code."""
    return [int(rows * share) for share in shares]


def dfcl_split(rows: int, seed: int = SEED) -> NDArray[np.int8]:
    """``[N]`` codes of train, val and test: the first 60 %, the next 10 % and the rest of DFCL's shuffle.

    Source: Zhou et al. 2024, arXiv 2407.13664, github.com/blackhaocs/Decision-Based-CausalML (KDD2024-DFCL).
    """
    return np.searchsorted(bounds(rows, 0.6, 0.7), shuffled_position(rows, seed), side="right").astype(np.int8)


def shuffle_digest(path: Path) -> str:
    """SHA-256 of the first and last five rows of the shuffle of a Parquet file of Criteo's columns.

    A row is a line of f0, f2, f6 and f8 to six places and the treatment, as the notebook prints them: the digest tells
    whether file and shuffle are those of the published code without repeating any of the data.
    """
    names = ["f0", "f2", "f6", "f8", "treatment"]
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        order = shuffle(sum(groups))
        lines, first = [], np.cumsum([0, *groups])
        for row in [*order[:5], *order[-5:]]:
            group = int(np.searchsorted(first, row, side="right")) - 1
            (cells,) = file.read_row_group(group, columns=names).slice(int(row - first[group]), 1).to_pylist()
            lines.append(" ".join(f"{cells[name]:.6f}" for name in names[:-1]) + f" {cells['treatment']}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
