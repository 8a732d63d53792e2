"""One treatment per user under a budget: the multiple-choice knapsack. Torch only; knows nothing of learning."""

from lightning_budget.allocation.curve import BudgetCurve, budget_curve
from lightning_budget.allocation.dual import dual_value, solve_multipliers
from lightning_budget.allocation.frontier import Frontier, efficient_frontier
from lightning_budget.allocation.pacing import ArrivalCurve, PacedPolicy
from lightning_budget.allocation.policy import policy_treatment
from lightning_budget.allocation.policy_origin import Budget, CheckpointSource, DataSource, PolicyOrigin
from lightning_budget.allocation.price_policy import PricePolicy
from lightning_budget.allocation.sketch import SlopeSketch
from lightning_budget.allocation.solve import Allocation, allocate

__all__ = [
    "Allocation",
    "ArrivalCurve",
    "Budget",
    "BudgetCurve",
    "CheckpointSource",
    "DataSource",
    "Frontier",
    "PacedPolicy",
    "PolicyOrigin",
    "PricePolicy",
    "SlopeSketch",
    "allocate",
    "budget_curve",
    "dual_value",
    "efficient_frontier",
    "policy_treatment",
    "solve_multipliers",
]
