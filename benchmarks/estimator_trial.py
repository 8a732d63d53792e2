"""The trial that estimators are examined on: rows of the embedded campaign, and what a linear head predicts of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_budget.allocation import solve_multipliers
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.campaign import Campaign
from lightning_budget.losses.cross_fitting import Features, cross_fit
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable, concatenate

FACE_VALUES = {2: (0.0, 5.0), 5: (0.0, 2.0, 4.0, 7.0, 11.0), 8: (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0)}
"""Coupons of a campaign with K arms."""
FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Eight budgets, of the free optimum's spend."""
FIT_ROWS = 60_000
"""Half of them fit the head; none is a row that it is examined on."""
LARGEST_TABLE = 8
"""Id features with larger tables are no columns of the head."""


@dataclass(frozen=True)
class Trial:
    """N rows, with oracle, and a linear head that was fitted to other rows.

    Attributes:
        table: the rows; schema, statistics: of the campaign, from the head's rows.
        columns: ``[N, P]``, what the head sees.
        head: ``[P, 2K]``, value of every arm, then cost.
        budgets: ``[B]``, currency per user; multipliers: ``[B]`` that meet them on these rows.
    """

    table: RCTTable
    schema: DataSchema
    statistics: DataStatistics
    columns: Tensor
    head: Tensor
    budgets: Tensor
    multipliers: Tensor

    @classmethod
    def draw(cls, rows: int, treatments: int, seed: int = 0, noise: float = 1.0) -> Trial:
        """Campaign ``seed`` with as many rows and arms.

        Args:
            rows: N; treatments: K; seed: of the campaign.
            noise: what is left of the distance of observed outcomes from their true means.
        """
        campaign = Campaign(FIT_ROWS, rows, face_values=FACE_VALUES[treatments], seed=seed)
        fitted = _quieter(campaign.partition("train", 0), noise)
        parts = [campaign.partition("val", i) for i in range(campaign.partitions("val"))]
        table = _quieter(concatenate(parts), noise)
        statistics = DataStatistics.from_table(fitted, campaign.schema)
        of_halves = cross_fit(fitted, campaign.schema, statistics, folds=2, max_categories=LARGEST_TABLE)
        features = Features.of(campaign.schema, statistics, LARGEST_TABLE)
        columns = torch.cat([features.matrix(table.batch(i)) for i in torch.arange(rows).split(65_536)])
        head = of_halves.coefficient[0]
        prediction = predict(columns, head)
        budgets = torch.tensor(FRACTIONS, dtype=torch.float64) * statistics.free_spend
        multipliers = solve_multipliers(prediction.value, prediction.cost, budgets)
        return cls(table, campaign.schema, statistics, columns, head, budgets, multipliers)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def treatments(self) -> int:
        return self.schema.num_treatments

    @property
    def prediction(self) -> ResponsePrediction:
        """``[N, K]`` each."""
        return predict(self.columns, self.head)

    @property
    def batch(self) -> RCTBatch:
        """All rows."""
        return self.table.batch(torch.arange(len(self)))

    def part(self, start: int, stop: int) -> Trial:
        """Some of the rows, at the same head and multipliers."""
        return replace(self, table=self.table.select(torch.arange(start, stop)), columns=self.columns[start:stop])


def _quieter(table: RCTTable, noise: float) -> RCTTable:
    assert table.true_value is not None
    assert table.true_cost is not None
    arm = table.treatment[:, None]
    value, cost = table.true_value.gather(1, arm)[:, 0], table.true_cost.gather(1, arm)[:, 0]
    return replace(table, value=value + noise * (table.value - value), cost=cost + noise * (table.cost - cost))


def predict(columns: Tensor, head: Tensor) -> ResponsePrediction:
    """Of rows ``[N, P]`` by a head ``[P, 2K]``."""
    value, cost = (columns @ head).chunk(2, dim=1)
    return ResponsePrediction(value.contiguous(), cost.contiguous())


def cosine(a: Tensor, b: Tensor) -> float:
    """Of all entries, in float64; 0 where either is 0."""
    x, y = a.double().flatten(), b.double().flatten()
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else 0.0
