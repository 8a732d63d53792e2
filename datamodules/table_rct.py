"""Bring your own trial: a csv or Parquet file whose columns you name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from datamodules.base import RCTDataModule
from lightning_budget.data.collisions import Collisions, told
from lightning_budget.data.columns import MEAN, UNIFORM, TableColumns
from lightning_budget.data.files import FORMATS
from lightning_budget.data.share_check import LEVEL
from lightning_budget.data.splits import SplitRule, Straddling
from lightning_budget.data.times import Boundary
from lightning_budget.data.trial import read_trial
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema, Eviction, Outcome
from lightning_budget.table import RCTTable
from lightning_budget.trial.rows import Kind, Rows

REFUSE = "refuse"


class TableRCTDataModule(RCTDataModule):
    """A randomized trial from a file.

    Args:
        path: csv, csv.gz or Parquet file, or a folder of Parquet files.
        treatment … eviction: what the columns mean, each argument as that of :class:`TableColumns`.
        nulls: ``refuse``, ``mean`` for all dense columns, or what to fill in by column, see :class:`TableColumns`.
        split: shares of the users for train, val and test. A user is in one split only; without a user column, rows
            with equal features are taken for one user.
        split_seed, stratify, boundaries, split_column, straddling: other splits, see :class:`SplitRule`.
        exclude: kinds of rows to leave out rather than refuse: missing_outcome, zero_propensity, invalid_propensity,
            unknown_arm, negative_cost.
        check_shares: level at which propensities are refused that arm counts contradict; 0: not at all.
        source: where to get the file; told if ``path`` is missing.
        **batching: see :class:`RCTDataModule`.

    Attributes:
        screened: what was left out by ``exclude``; after :meth:`setup`, where anything was asked to be.
        collisions: of hashed and managed features, how many ids of the training split share a row; after :meth:`setup`.

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
        *,
        weight: str | None = None,
        time: str | None = None,
        cost_formula: str | None = None,
        levels: Sequence[float] = (),
        strata: Sequence[str] = (),
        nulls: str | Mapping[str, float | str] = REFUSE,
        null_flags: Sequence[str] = (),
        hashed: Mapping[str, int] | None = None,
        managed: Mapping[str, int] | None = None,
        eviction: Eviction = "distance_lfu",
        stratify: bool = False,
        boundaries: Sequence[Boundary] | None = None,
        split_column: str | None = None,
        straddling: Straddling | None = None,
        check_shares: float = LEVEL,
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
            weight=weight,
            time=time,
            cost_formula=cost_formula,
            levels=tuple(levels),
            strata=tuple(strata),
            nulls=fills_of(nulls, dense),
            null_flags=tuple(null_flags),
            hashed=dict(hashed or {}),
            managed=dict(managed or {}),
            eviction=eviction,
        )
        self.rule = SplitRule(
            shares=tuple(split),
            seed=split_seed,
            stratify=stratify,
            boundaries=None if boundaries is None else tuple(boundaries),
            column=split_column,
            straddling=straddling,
        )
        self.exclude, self.check_shares = tuple(exclude), check_shares
        self._schema: DataSchema | None = None
        self.screened: Rows | None = None
        self.collisions: tuple[Collisions, ...] = ()

    def use_schema(self, schema: DataSchema) -> None:
        """Encode by a checkpoint's schema instead of learning one; call before :meth:`setup`."""
        self._schema = schema

    def load(self) -> tuple[dict[str, RCTTable], DataSchema]:
        """Read and split the file."""
        trial = read_trial(
            self.path,
            self.columns,
            self.rule,
            schema=self._schema,
            exclude=self.exclude,
            check_shares=self.check_shares,
        )
        self.screened, self.collisions = trial.rows, trial.collisions
        if line := told(self.collisions):
            rank_zero_only(print)(line)
        return trial.splits, trial.schema


def fills_of(nulls: str | Mapping[str, float | str], dense: Sequence[str]) -> dict[str, float | str]:
    """What is filled in by dense column, from ``refuse``, ``mean`` or a mapping.

    Raises:
        InputError: for another word.
    """
    if not isinstance(nulls, str):
        return dict(nulls)
    if nulls not in (REFUSE, MEAN):
        raise InputError(
            f"nulls={nulls!r}",
            f"{REFUSE}, {MEAN}, or a number or {MEAN} by column",
            "e.g. nulls={age: mean, visits: 0}",
        )
    return dict.fromkeys(dense, MEAN) if nulls == MEAN else {}
