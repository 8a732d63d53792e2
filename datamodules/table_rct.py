"""Bring your own trial: a csv or Parquet file whose columns you name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamodules.base import RCTDataModule
from lightning_budget.data.columns import UNIFORM, TableColumns
from lightning_budget.data.files import FORMATS
from lightning_budget.data.trial import read_trial
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema, Outcome
from lightning_budget.table import RCTTable
from lightning_budget.trial.rows import Kind, Rows


class TableRCTDataModule(RCTDataModule):
    """A randomized trial from a file.

    Args:
        path: csv, csv.gz or Parquet file, or a folder of Parquet files.
        treatment, arms, value, cost, cost_per_arm, propensity, dense, categorical, lists, user, value_kind, cost_kind,
            value_unit, cost_unit: what the columns mean, see :class:`TableColumns`.
        split: shares of the users for train, val and test. A user is in one split only; without a user column, rows
            with equal features are taken for one user.
        split_seed: names the split.
        exclude: kinds of rows to leave out rather than refuse: missing_outcome, zero_propensity, invalid_propensity,
            unknown_arm, negative_cost.
        source: where to get the file; told if ``path`` is missing.
        **batching: see :class:`RCTDataModule`.

    Attributes:
        screened: what was left out by ``exclude``; after :meth:`setup`, where anything was asked to be.

    Raises:
        InputError: if ``path`` is missing or the parts do not fit together; on :meth:`setup` for anything amiss in the
            file.
    """

    def __init__(
        self,
        path: str | None,
        treatment: str,
        arms: Sequence[str | int],
        value: str,
        cost: str | None = None,
        cost_per_arm: Sequence[float | None] | None = None,
        propensity: str | Sequence[float] = UNIFORM,
        dense: Sequence[str] = (),
        categorical: Sequence[str] = (),
        lists: Sequence[str] = (),
        user: str | None = None,
        value_kind: Outcome = "continuous",
        cost_kind: Outcome = "continuous",
        value_unit: str = "value",
        cost_unit: str = "currency",
        split: Sequence[float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        exclude: Sequence[Kind] = (),
        source: str = "your own trial",
        **batching: Any,
    ) -> None:
        super().__init__(**batching)
        if not path:
            raise InputError("data.path is missing", FORMATS, f"data.path=…, the file of {source}")
        self.path = path
        self.columns = TableColumns(
            treatment=treatment,
            arms=tuple(str(arm) for arm in arms),
            value=value,
            cost=cost,
            cost_per_arm=None if cost_per_arm is None else tuple(cost_per_arm),
            propensity=propensity if isinstance(propensity, str) else tuple(propensity),
            dense=tuple(dense),
            categorical=tuple(categorical),
            lists=tuple(lists),
            user=user,
            value_kind=value_kind,
            cost_kind=cost_kind,
            value_unit=value_unit,
            cost_unit=cost_unit,
        )
        self.shares, self.split_seed, self.exclude = tuple(split), split_seed, tuple(exclude)
        self._schema: DataSchema | None = None
        self.screened: Rows | None = None

    def use_schema(self, schema: DataSchema) -> None:
        """Encode ids by a checkpoint's schema instead of learning vocabularies; call before :meth:`setup`."""
        self._schema = schema

    def load(self) -> tuple[dict[str, RCTTable], DataSchema]:
        """Read and split the file."""
        trial = read_trial(self.path, self.columns, self.shares, self.split_seed, self._schema, self.exclude)
        self.screened = trial.rows
        return trial.splits, trial.schema
