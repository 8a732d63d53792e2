"""A trial from a file that also knows the expected outcomes under every arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.table_rct import TableRCTDataModule
from lightning_budget.data.files import File, read_columns
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable


class OracleTableDataModule(TableRCTDataModule):
    """A generated trial from a file: one row a user, with true expected value and cost of every arm.

    Args:
        true_value, true_cost: K columns each, one per arm in the order of ``arms``.
        **trial: see :class:`TableRCTDataModule`; ``user`` stays ``None``.

    Raises:
        InputError: as :class:`TableRCTDataModule`, and if the oracle's columns do not fit the arms.
    """

    def __init__(self, *, true_value: Sequence[str], true_cost: Sequence[str], **trial: Any) -> None:
        super().__init__(**trial)
        self.true_value, self.true_cost = tuple(true_value), tuple(true_cost)
        for name, columns in (("true_value", self.true_value), ("true_cost", self.true_cost)):
            if len(columns) != (k := len(self.columns.arms)):
                raise InputError(f"{name} of {len(columns)} columns", f"{k}, one per arm", f"list {k} in {name}")
        if self.columns.user is not None:
            raise InputError(f"user={self.columns.user!r}", "null: a row is a user", "remove user")
        if seen := set(self.columns.dense) & {*self.true_value, *self.true_cost}:
            raise InputError(f"feature {min(seen)!r} is the oracle's", "features known beforehand", "remove it")

    def load(self) -> tuple[dict[str, RCTTable], DataSchema]:
        """Read and split the file, and put the oracle beside the observed outcomes."""
        splits, schema = super().load()
        file = read_columns(self.path, [(name, "dense") for name in (*self.true_value, *self.true_cost)])
        value, cost = _matrix(file, self.true_value), _matrix(file, self.true_cost)
        # Where the file names no users, a row's user is its number.
        return {
            name: replace(table, true_value=value[table.user], true_cost=cost[table.user])
            for name, table in splits.items()
        }, schema


def _matrix(file: File, columns: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.stack([file[name].numbers() for name in columns], 1))
