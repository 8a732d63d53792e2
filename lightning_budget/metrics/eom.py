"""EOM collected over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import Normalization, as_budgets, check_normalization
from lightning_budget.metrics.functional.cost_curve import cost_curve
from lightning_budget.metrics.rows import RowMetric, ones


class ExpectedOutcome(RowMetric):
    """Expected outcome metric at fixed budgets, exact under any batching and sharding.

    Keeps all rows (:class:`RowMetric`), because the multiplier of a budget belongs to the whole split; for more than
    memory holds there is :class:`~lightning_budget.metrics.streaming.StreamingOutcome`.

    Args:
        budgets: ``[B]``, currency per user.
        normalization: ``hajek`` or ``ipw``; part of the names of the results.
        kwargs: of :class:`torchmetrics.Metric`; ``compute_on_cpu=True`` keeps the rows off the accelerator.

    Raises:
        InputError: if a budget is not above 0, two budgets print alike, or the normalisation does not exist.

    Example:
        ``{"eom_hajek/0.5": …, "eom_hajek/2": …, "eom_hajek/mean": …}`` from ``ExpectedOutcome([0.5, 2.0]).compute()``.

    Source: :func:`lightning_budget.metrics.functional.eom_hajek`.
    """

    def __init__(
        self, budgets: Sequence[float] | Tensor, normalization: Normalization = "hajek", **kwargs: Any
    ) -> None:
        super().__init__(("value_hat", "cost_hat", "treatment", "value", "cost", "propensity", "weight"), **kwargs)
        check_normalization(normalization)
        self.budgets: list[float] = as_budgets(budgets).tolist()
        self.normalization: Normalization = normalization
        self.names = [f"eom_{normalization}/{b:g}" for b in self.budgets]
        if len(set(self.names)) < len(self.names):
            raise InputError(
                f"budgets {self.budgets}", "budgets that differ in six digits", "leave out the repeated ones"
            )

    def update(
        self,
        value_hat: Tensor,
        cost_hat: Tensor,
        treatment: Tensor,
        value: Tensor,
        cost: Tensor,
        propensity: Tensor,
        row: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Keep a batch: predictions ``[n, K]``; arm, outcomes, propensity, position in the split and weight ``[n]``."""
        self.keep(
            value_hat=value_hat,
            cost_hat=cost_hat,
            treatment=treatment,
            value=value,
            cost=cost,
            propensity=propensity,
            row=row,
            weight=ones(weight, row),
        )

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name, value units per user: one per budget, and their mean.

        Raises:
            InputError: if no row was kept, or on rows that :func:`cost_curve` refuses.
        """
        curve = cost_curve(**self.rows(), normalization=self.normalization)
        values = curve.at_budget(torch.tensor(self.budgets, dtype=torch.float64)).value
        return {**dict(zip(self.names, values, strict=True)), f"eom_{self.normalization}/mean": values.mean()}
