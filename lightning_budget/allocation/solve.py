"""Solve one allocation problem and say how far from the optimum it can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.dual import critical_multipliers, dual_value, treatment_cost
from lightning_budget.allocation.policy import policy_treatment
from lightning_budget.allocation.problem import AllocationProblem
from lightning_budget.allocation.repair import spend_leftover
from lightning_budget.allocation.summation import exact_sum


@dataclass(frozen=True)
class Allocation:
    """One treatment per user within the budget, and the proof of its quality.

    Attributes:
        treatment: ``[N]`` int64.
        multiplier: λ, the value that one more unit of currency would earn; 0 where the budget does not bind.
        value: total predicted value.
        spend: total predicted spend, summed in float64 without rounding between users.
        dual_bound: no allocation within the budget is worth more.
        gap: ``dual_bound − value``, at least 0 up to rounding.
        slack: ``budget − spend``, at least 0.
        budget: total currency that was given.
    """

    treatment: Tensor
    multiplier: float
    value: float
    spend: float
    dual_bound: float
    gap: float
    slack: float
    budget: float

    def certificate(self) -> dict[str, float | int]:
        """Plain numbers for a report: users, the budget and what was spent, the value and its bound."""
        return {
            "users": len(self.treatment),
            "budget": self.budget,
            "spend": self.spend,
            "slack": self.slack,
            "value": self.value,
            "dual_bound": self.dual_bound,
            "gap": self.gap,
            "relative_gap": self.gap / abs(self.dual_bound) if self.dual_bound else 0.0,
            "multiplier": self.multiplier,
        }


@torch.no_grad()
def allocate(problem: AllocationProblem) -> Allocation:
    r"""Give every user one treatment: the policy at the critical multiplier, then a greedy fill of what it leaves over.

    The value is within the largest single step of one user's frontier of the linear relaxation, whose optimum is
    ``dual_bound``: :math:`\min_\lambda D(\lambda)`.

    Args:
        problem: N users, K treatments, one total budget.

    Source:
        Sinha, Zoltners 1979, doi:10.1287/opre.27.3.503; Zemel 1980, doi:10.1287/opre.28.6.1412.
    """
    value, cost, budget = problem.value, problem.cost, problem.budget
    ((multiplier, floor),) = critical_multipliers(value, cost, [budget])
    treatment = policy_treatment(value, cost, multiplier)
    if multiplier > 0:
        treatment = spend_leftover(value, cost, treatment, budget, multiplier, floor)
    spend = exact_sum(treatment_cost(cost, treatment))
    reached = exact_sum(treatment_cost(value, treatment))
    bound = dual_value(value, cost, multiplier, budget)
    return Allocation(treatment, multiplier, reached, spend, bound, bound - reached, budget - spend, budget)
