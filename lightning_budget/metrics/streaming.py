"""EOM, its curve and its intervals over any number of rows and processes, in the memory of one curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.bootstrap import PairedDifference, percentile_interval
from lightning_budget.metrics.functional.checks import Normalization, as_budgets, check_normalization
from lightning_budget.metrics.functional.cost_curve import CostCurve
from lightning_budget.metrics.functional.grid import MultiplierGrid, grid_changes, grid_resamples
from lightning_budget.metrics.functional.grid_curve import grid_curve, grid_enclosure, grid_points
from lightning_budget.metrics.functional.matched import matched_interval
from lightning_budget.metrics.functional.walk import first_crossing


class StreamingOutcome(Metric):
    """Expected outcome metric at fixed budgets from sums over a grid of multipliers.

    Every state is a sum: rows may come in any order, batch size and process, once each, and none is kept. The curve is
    exact at the grid's points; ``enclosure`` says how far the exact curve can be from it at the budgets.

    Args:
        budgets: ``[B]``, currency per user.
        normalization: ``hajek`` or ``ipw``; part of the names of the results.
        resamples: R of the Poisson bootstrap over users; 0: no intervals. The state grows to ``[R, 3, P]``.
        seed: of the bootstrap; metrics with the same seed can be compared by :meth:`minus`.
        grid: P multipliers.
        level: of the intervals.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: if a budget is not above 0, the normalisation does not exist, or ``resamples`` is negative.

    Example:
        ``{"eom_hajek/0.5": …, "eom_hajek/0.5/low": …, "eom_hajek/0.5/high": …, …, "eom_hajek/mean": …}``

    Source: :func:`lightning_budget.metrics.functional.grid_curve`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    changes: Tensor
    total: Tensor
    resampled: Tensor
    resampled_total: Tensor

    def __init__(
        self,
        budgets: Sequence[float] | Tensor,
        normalization: Normalization = "hajek",
        resamples: int = 0,
        seed: int = 0,
        grid: MultiplierGrid | None = None,
        level: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_normalization(normalization)
        if resamples < 0:
            raise InputError(f"resamples={resamples}", "0 or more", "0 gives no intervals, 200 good ones")
        self.budgets: list[float] = as_budgets(budgets).tolist()
        self.normalization: Normalization = normalization
        self.resamples, self.seed, self.level = resamples, seed, level
        self.grid = grid or MultiplierGrid()
        points = len(self.grid)
        self.add_state("changes", torch.zeros(6, points, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("resampled", torch.zeros(resamples, 3, points, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("resampled_total", torch.zeros(resamples, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        value_hat: Tensor,
        cost_hat: Tensor,
        treatment: Tensor,
        value: Tensor,
        cost: Tensor,
        propensity: Tensor,
        user: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Add a batch: predictions ``[n, K]``; arm, outcomes, propensity, user and sample weight ``[n]``.

        Raises:
            InputError: on rows that :func:`cost_curve` refuses, or without ``user`` where there are resamples.
        """
        if not len(treatment):
            return
        interval = matched_interval(value_hat, cost_hat, treatment)
        logged = (value, cost, propensity)
        self.changes += grid_changes(interval, *logged, self.grid, weight)
        self.total += len(treatment) if weight is None else weight.double().sum()
        if self.resamples:
            if user is None:
                raise InputError("no users", "an int64 identity per row", "give user=…, or resamples=0")
            changes, total = grid_resamples(interval, user, *logged, self.grid, self.resamples, self.seed, weight)
            self.resampled += changes
            self.resampled_total += total

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name, value units per user: one per budget with its interval, and their mean."""
        name, curve = f"eom_{self.normalization}", self.curve()
        values = curve.at_budget(self.budgets).value
        named = {f"{name}/{b:g}": v for b, v in zip(self.budgets, values, strict=True)}
        if self.resamples:
            low, high = percentile_interval(self.samples(), self.level)
            for end, numbers in (("low", low), ("high", high)):
                named |= {f"{name}/{b:g}/{end}": v for b, v in zip(self.budgets, numbers, strict=True)}
        return {**named, f"{name}/mean": values.mean()}

    def curve(self) -> CostCurve:
        """The whole curve of the rows so far.

        Raises:
            InputError: if there were none.
        """
        if float(self.total) <= 0:
            raise InputError("0 rows in StreamingOutcome", "at least 1", "update it with a batch before compute")
        return grid_curve(self.changes, float(self.total), self.grid, self.normalization)

    def enclosure(self) -> tuple[Tensor, Tensor]:
        """Ends ``[B]`` between which the exact curve lies at the budgets."""
        self.curve()
        return grid_enclosure(self.changes, float(self.total), self.budgets, self.normalization)

    def samples(self) -> Tensor:
        """Value on every resample, ``[R, B]``."""
        spend, value = grid_points(self.resampled, self.resampled_total, self.normalization)
        budgets = torch.tensor(self.budgets, dtype=torch.float64, device=spend.device)
        return first_crossing(spend, value, budgets).value

    def minus(self, other: StreamingOutcome) -> PairedDifference:
        """Value at the budgets minus that of another model on the same rows, with intervals from common resamples.

        Raises:
            InputError: unless both have the same budgets, resamples and seed, at least one of them.
        """
        mine, theirs = ((m.budgets, m.resamples, m.seed, m.normalization) for m in (self, other))
        if mine != theirs or not self.resamples:
            raise InputError(
                f"metrics with (budgets, resamples, seed, normalization) {mine} and {theirs}",
                "equal ones, with resamples",
                "make both alike",
            )
        estimate = self.curve().at_budget(self.budgets).value - other.curve().at_budget(self.budgets).value
        drawn = self.samples() - other.samples()
        ends, mean_ends = percentile_interval(drawn, self.level), percentile_interval(drawn.mean(1), self.level)
        return PairedDifference(estimate, *ends, estimate.mean(), *mean_ends)
