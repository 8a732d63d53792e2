"""EOM collected over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import Normalization, as_budgets, check_normalization
from lightning_budget.metrics.functional.cost_curve import cost_curve

_COLUMNS = ("value_hat", "cost_hat", "treatment", "value", "cost", "propensity", "row")


class ExpectedOutcome(Metric):
    """Expected outcome metric at fixed budgets, exact under any batching and sharding.

    Keeps all rows, because the multiplier of a budget belongs to the whole split. Rows are put in order of ``row``, a
    row seen twice (a sampler's padding, two processes) counts once, and a row below 0 only fills up a batch.

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

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    value_hat: list[Tensor]
    cost_hat: list[Tensor]
    treatment: list[Tensor]
    value: list[Tensor]
    cost: list[Tensor]
    propensity: list[Tensor]
    row: list[Tensor]

    def __init__(
        self, budgets: Sequence[float] | Tensor, normalization: Normalization = "hajek", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_normalization(normalization)
        self.budgets: list[float] = as_budgets(budgets).tolist()
        self.normalization: Normalization = normalization
        self.names = [f"eom_{normalization}/{b:g}" for b in self.budgets]
        if len(set(self.names)) < len(self.names):
            raise InputError(
                f"budgets {self.budgets}", "budgets that differ in six digits", "leave out the repeated ones"
            )
        for column in _COLUMNS:
            self.add_state(column, default=[], dist_reduce_fx="cat")

    def update(
        self,
        value_hat: Tensor,
        cost_hat: Tensor,
        treatment: Tensor,
        value: Tensor,
        cost: Tensor,
        propensity: Tensor,
        row: Tensor,
    ) -> None:
        """Keep a batch: predictions ``[n, K]``; arm, outcomes, propensity and position in the split ``[n]``."""
        batch = (value_hat, cost_hat, treatment, value, cost, propensity, row)
        for column, tensor in zip(_COLUMNS, batch, strict=True):
            getattr(self, column).append(tensor.detach())

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name, value units per user: one per budget, and their mean.

        Raises:
            InputError: if no row was kept, or on rows that :func:`cost_curve` refuses.
        """
        if isinstance(self.row, list) and not self.row:
            raise InputError("0 rows in ExpectedOutcome", "at least 1", "update it with a batch before compute")
        columns = {column: dim_zero_cat(getattr(self, column)) for column in _COLUMNS}
        row, order = columns.pop("row").sort(stable=True)
        kept = row >= 0
        kept[1:] &= row[1:] != row[:-1]
        order = order[kept]
        curve = cost_curve(**{name: x[order] for name, x in columns.items()}, normalization=self.normalization)
        values = curve.at_budget(torch.tensor(self.budgets, dtype=torch.float64)).value
        return {**dict(zip(self.names, values, strict=True)), f"eom_{self.normalization}/mean": values.mean()}
