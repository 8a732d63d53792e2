"""The whole curve from budget to value, for as many users as fit in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import efficient_frontier
from lightning_budget.allocation.problem import check_predictions


@dataclass(frozen=True)
class BudgetCurve:
    """Optimum of the linear relaxation for every budget: concave, piecewise linear.

    Attributes:
        budget, value: ``[M + 1]`` float64, totals at the breakpoints, from the cheapest feasible spend on.
        multiplier: ``[M]`` float64, the slope of each piece, descending, above 0.
    """

    budget: Tensor
    value: Tensor
    multiplier: Tensor

    def at(self, budget: Tensor) -> Tensor:
        """Value ``[B]`` of total budgets ``[B]`` from the cheapest feasible spend on; level beyond the last one."""
        if not len(self.multiplier):
            return self.value.expand(len(budget))
        piece = (torch.searchsorted(self.budget, budget, right=True) - 1).clamp(0, len(self.multiplier) - 1)
        spent = torch.minimum(budget, self.budget[-1])
        return self.value[piece] + self.multiplier[piece] * (spent - self.budget[piece])


@torch.no_grad()
def budget_curve(value: Tensor, cost: Tensor) -> BudgetCurve:
    """The curve of N users with K arms ``[N, K]``; takes memory for their M ≤ N·(K−1) steps.

    Raises:
        InputError: if the predictions are not finite ``[N, K]`` tensors.
    """
    check_predictions(value, cost)
    f = efficient_frontier(value, cost)

    def running(x: Tensor) -> Tensor:
        start = x.gather(1, f.cheapest[:, None]).double().sum()[None]
        return torch.cat([start, x[f.user, f.arm].double() - x[f.user, f.previous].double()]).cumsum(0)

    return BudgetCurve(running(cost), running(value), f.slope)
