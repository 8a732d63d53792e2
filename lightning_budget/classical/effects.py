"""Value and cost of every arm from effects against control, which a library fits to a matrix of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.cross_fitting import Features
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable

CHUNK = 1 << 16


@dataclass(frozen=True)
class Observed:
    """What a library fits the effects on one outcome to, N rows.

    Attributes:
        x: ``[N, P]`` float64; treatment: ``[N]`` int64; outcome: ``[N]`` float64.
        weight: ``[N]`` float64 sample weights, ``None`` where every row counts once.
        propensity: ``[K]``, where the trial's propensity is one number an arm; ``None`` where it depends on the row.
    """

    x: np.ndarray
    treatment: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray | None
    propensity: np.ndarray | None


class Effects(Protocol):
    """Fitted effects of arms 1 … K − 1 against control on one outcome."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``[n, P] → [n, K − 1]``, in units of the outcome."""
        ...


@dataclass(frozen=True)
class EffectModel:
    """``v̂_ij = control's mean value + τ̂^v_j(x_i)``, and so for cost, where that is not known.

    A policy by price asks for differences between arms alone, and totals are right on average.

    Attributes:
        features: the dense ones and one-hot columns of id features with few values.
        value, cost: their effects; ``None`` where the cost of every arm is known.
        control: mean value and cost of control.
        known_cost: ``[K]``, NaN where it is not known.
    """

    features: Features
    value: Effects
    cost: Effects | None
    control: tuple[float, float]
    known_cost: Tensor

    def predict(self, table: RCTTable) -> ResponsePrediction:
        """``[N, K]`` each."""
        x = columns(self.features, table)
        value, cost = (self._levels(x, *of) for of in zip((self.value, self.cost), self.control, strict=True))
        return ResponsePrediction(value, torch.where(self.known_cost.isnan(), cost, self.known_cost))

    def _levels(self, x: np.ndarray, effects: Effects | None, control: float) -> Tensor:
        n, others = len(x), len(self.known_cost) - 1
        effect = torch.zeros(n, others) if effects is None else torch.from_numpy(effects(x)).float().view(n, others)
        return control + torch.cat([torch.zeros(n, 1), effect], dim=1)


def fit_effects(
    fit: Callable[[Observed], Effects],
    train: RCTTable,
    schema: DataSchema,
    statistics: DataStatistics,
    max_categories: int,
) -> EffectModel:
    """One fit for value, and one for cost unless that of every arm is known.

    Args:
        fit: of the library; train: rows to fit on; schema, statistics: of the training split.
        max_categories: largest table, in rows, of an id feature that gets columns.

    Raises:
        InputError: without a column to fit to; what ``fit`` raises.
    """
    features = Features.of(schema, statistics, max_categories)
    if features.width == 1:
        raise InputError("no dense features, nor ids with few values", "at least one", "raise max_categories")
    x, treatment = columns(features, train), train.treatment.numpy()
    weight = None if train.weight is None else train.weight.double().numpy()
    propensity = one_propensity(train, schema.num_treatments)

    def effects(outcome: Tensor) -> Effects:
        return fit(Observed(x, treatment, outcome.double().numpy(), weight, propensity))

    known = torch.tensor([float("nan") if c is None else c for c in schema.known_cost])
    cost = effects(train.cost) if bool(known.isnan().any()) else None
    return EffectModel(features, effects(train.value), cost, (statistics.value_mean[0], statistics.cost_mean[0]), known)


def one_propensity(table: RCTTable, arms: int) -> np.ndarray | None:
    """``[K]``, the trial's propensity where it is one number an arm."""
    of_arm = [table.propensity[table.treatment == j] for j in range(arms)]
    if not all(len(p) and bool((p == p[0]).all()) for p in of_arm):
        return None
    return np.array([float(p[0]) for p in of_arm])


def columns(features: Features, table: RCTTable) -> np.ndarray:
    """``[N, P]`` float64, without the intercept."""
    parts = [features.matrix(table.batch(i))[:, 1:] for i in torch.arange(len(table)).split(CHUNK)]
    return torch.cat(parts).double().numpy()
