"""What a scan has found, kept on disk so that a second start does not scan again."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_budget.atomic import atomic_path
from lightning_budget.data.arm_cuts import ArmCuts
from lightning_budget.data.collisions import Collisions
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import IdList, RCTTable
from lightning_budget.trial.rows import RowKind, Rows

FORMAT = 5


@dataclass(frozen=True)
class Profile:
    """What a scan has found.

    Attributes:
        schema, statistics: of the whole training split.
        piece_rows: training rows of each piece.
        rows: of train, val and test.
        tables: rows of each split kept in memory.
        collisions: of hashed and managed features.
        screened: what was left out, where anything was asked to be.
        cuts: where each arm's users are cut, of a split that is stratified.
    """

    schema: DataSchema
    statistics: DataStatistics
    piece_rows: tuple[int, ...]
    rows: tuple[int, int, int]
    tables: dict[str, RCTTable]
    collisions: tuple[Collisions, ...] = ()
    screened: Rows | None = None
    cuts: ArmCuts | None = None

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            OSError: if that cannot be done.
        """
        state = {
            "format": FORMAT,
            "schema": self.schema.to_dict(),
            "statistics": self.statistics.to_dict(),
            "piece_rows": list(self.piece_rows),
            "rows": list(self.rows),
            "collisions": [asdict(c) for c in self.collisions],
            "screened": None if self.screened is None else asdict(self.screened),
            "cuts": None if self.cuts is None else _cut_tensors(self.cuts),
            "tables": {name: _tensors(table) for name, table in self.tables.items()},
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    @classmethod
    def load(cls, path: Path) -> Profile | None:
        """What :meth:`save` has written; ``None`` if there is nothing that can be used."""
        try:
            state = torch.load(path, weights_only=True)
            if state["format"] != FORMAT:
                return None
            return cls(
                DataSchema.from_dict(state["schema"]),
                DataStatistics.from_dict(state["statistics"]),
                tuple(state["piece_rows"]),
                tuple(state["rows"]),
                {name: _table(tensors) for name, tensors in state["tables"].items()},
                tuple(Collisions(**c) for c in state["collisions"]),
                None if state["screened"] is None else _rows(state["screened"]),
                None if state["cuts"] is None else _cuts(state["cuts"]),
            )
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError):
            return None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file: of processes that start together, one scans and the others read what it has found."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rows(state: dict[str, Any]) -> Rows:
    return Rows(**{**state, "kinds": tuple(RowKind(**kind) for kind in state["kinds"])})


def _cut_tensors(cuts: ArmCuts) -> list[Tensor]:
    return [torch.from_numpy(x) for x in (cuts.bounds.view(np.int64), cuts.others.view(np.int64), cuts.parts)]


def _cuts(state: list[Tensor]) -> ArmCuts:
    bounds, others, parts = (x.numpy() for x in state)
    return ArmCuts(bounds.view(np.uint64), others.view(np.uint64), parts)


def _tensors(table: RCTTable) -> dict[str, Any]:
    columns = {f.name: getattr(table, f.name) for f in fields(table) if f.name != "ids"}
    ids = {name: [c.values, c.offsets] if isinstance(c, IdList) else c for name, c in table.ids.items()}
    return {"columns": columns, "ids": ids}


def _table(state: dict[str, Any]) -> RCTTable:
    ids = {name: c if isinstance(c, Tensor) else IdList(*c) for name, c in state["ids"].items()}
    return RCTTable(**state["columns"], ids=ids)
