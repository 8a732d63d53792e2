"""The file behind a data set: found, prepared from the publisher's, or generated."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_budget.benchmark.suite import DataSet
from lightning_budget.errors import InputError
from lightning_budget.published.catalogue import PUBLISHED
from lightning_budget.published.generate import campaign_mt7
from lightning_budget.published.mt7 import Surface
from lightning_budget.published.prepare import prepare


def why_absent(data: DataSet, root: Path) -> str | None:
    """Why the data set cannot be used here; ``None`` where it can."""
    if data.file is None or (root / data.file).exists():
        return None
    return f"no {data.file} in {root}"


def file_of(data: DataSet, root: Path, folder: Path, seed: int) -> Path | None:
    """The file that ``data.path`` names, made where it has to be; ``None`` for data sets without one.

    Args:
        root: where publishers' files are.
        folder: where made files go.
        seed: of generated ones.

    Raises:
        InputError: if the file cannot be made.
    """
    if data.generate is not None:
        path = folder / f"{data.name}-seed{seed}.parquet"
        with _once(path) as wanted:
            if wanted:
                generated(path, seed, **data.generate)
        return path
    if data.file is None:
        return None
    source = root / data.file
    if data.prepare is None:
        return source
    path = folder / f"{data.name}.parquet"
    with _once(path) as wanted:
        if wanted and not (found := prepare(PUBLISHED[data.prepare], source, path)).passed:
            failed = ", ".join(c.name for c in found.checks if c.passed is False)
            raise InputError(f"{source} is not as published: {failed}", "the publisher's rows", "get the file anew")
    return path


def generated(path: Path, seed: int, rows: int, surface: Mapping[str, Any] | None = None) -> None:
    """A trial with the outcomes of Criteo-MT7 on features of the campaign; ``surface`` changes its constants."""
    campaign_mt7(path, rows, seed, surface=Surface(**(surface or {})))


@contextmanager
def _once(path: Path) -> Iterator[bool]:
    """Whether the file has to be made; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield not path.exists()
    finally:
        os.close(descriptor)
