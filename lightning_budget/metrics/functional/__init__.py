"""Metrics as pure functions of tensors: torch and the allocator, nothing else."""

from lightning_budget.metrics.functional.area import normalized_area
from lightning_budget.metrics.functional.bootstrap import (
    PairedDifference,
    bootstrap_curves,
    paired_difference,
    paired_oracle_difference,
    percentile_interval,
)
from lightning_budget.metrics.functional.cost_curve import (
    BudgetPoint,
    CostCurve,
    cost_curve,
    policy_curve,
)
from lightning_budget.metrics.functional.eom import eom_hajek, eom_ipw
from lightning_budget.metrics.functional.eom_error import Influence, eom_influence, normal_interval, standard_error
from lightning_budget.metrics.functional.grid import MultiplierGrid, grid_changes, grid_resamples
from lightning_budget.metrics.functional.grid_curve import grid_curve, grid_enclosure, grid_points
from lightning_budget.metrics.functional.matched import MatchedInterval, matched_interval
from lightning_budget.metrics.functional.oracle import regret
from lightning_budget.metrics.functional.poisson import poisson_weights
from lightning_budget.metrics.functional.poststratified import eom_poststratified, poststratified_curve
from lightning_budget.metrics.functional.uniform import control_value, uniform_curve, uniform_true_curve

__all__ = [
    "BudgetPoint",
    "CostCurve",
    "Influence",
    "MatchedInterval",
    "MultiplierGrid",
    "PairedDifference",
    "bootstrap_curves",
    "control_value",
    "cost_curve",
    "eom_hajek",
    "eom_influence",
    "eom_ipw",
    "eom_poststratified",
    "grid_changes",
    "grid_curve",
    "grid_enclosure",
    "grid_points",
    "grid_resamples",
    "matched_interval",
    "normal_interval",
    "normalized_area",
    "paired_difference",
    "paired_oracle_difference",
    "percentile_interval",
    "poisson_weights",
    "policy_curve",
    "poststratified_curve",
    "regret",
    "standard_error",
    "uniform_curve",
    "uniform_true_curve",
]
