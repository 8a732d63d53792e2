"""Allocation under several constraints at once: budgets of segments and treatments, counts, floors and masks."""

from lightning_budget.allocation.constrained.problem import (
    ConstrainedProblem,
    Constraint,
    budget,
    least_users,
    most_users,
    roi_floor,
)
from lightning_budget.allocation.constrained.solve import ConstrainedAllocation, allocate_constrained

__all__ = [
    "ConstrainedAllocation",
    "ConstrainedProblem",
    "Constraint",
    "allocate_constrained",
    "budget",
    "least_users",
    "most_users",
    "roi_floor",
]
