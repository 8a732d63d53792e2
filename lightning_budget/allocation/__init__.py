"""One treatment per user under a budget: the multiple-choice knapsack. Torch only; knows nothing of learning."""

from lightning_budget.allocation.dual import dual_value, solve_multipliers
from lightning_budget.allocation.frontier import Frontier, efficient_frontier
from lightning_budget.allocation.policy import PricePolicy, policy_treatment
from lightning_budget.allocation.problem import AllocationProblem
from lightning_budget.allocation.repair import spend_leftover
from lightning_budget.allocation.solve import Allocation, allocate

__all__ = [
    "Allocation",
    "AllocationProblem",
    "Frontier",
    "PricePolicy",
    "allocate",
    "dual_value",
    "efficient_frontier",
    "policy_treatment",
    "solve_multipliers",
    "spend_leftover",
]
