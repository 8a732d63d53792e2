"""Callbacks: each one concern of a run."""

from lightning_budget.training.callbacks.allocation_metrics import AllocationMetrics
from lightning_budget.training.callbacks.budget_objective import BudgetObjective
from lightning_budget.training.callbacks.epoch_lines import EpochLines
from lightning_budget.training.callbacks.second_half_stopping import SecondHalfStopping
from lightning_budget.training.callbacks.throughput import Throughput

__all__ = ["AllocationMetrics", "BudgetObjective", "EpochLines", "SecondHalfStopping", "Throughput"]
