"""Metrics as pure functions of tensors: torch and the allocator, nothing else."""

from lightning_budget.metrics.functional.area import normalized_area
from lightning_budget.metrics.functional.aucc import RewardCurve, aucc, reward_curve
from lightning_budget.metrics.functional.bootstrap import (
    PairedDifference,
    bootstrap_curves,
    paired_difference,
    paired_oracle_difference,
    percentile_interval,
)
from lightning_budget.metrics.functional.calibration import Calibration, calibration, calibration_of, calibration_sums
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
from lightning_budget.metrics.functional.increments import Increments, increments
from lightning_budget.metrics.functional.matched import MatchedInterval, matched_interval
from lightning_budget.metrics.functional.oracle import regret
from lightning_budget.metrics.functional.poisson import poisson_weights
from lightning_budget.metrics.functional.poststratified import eom_poststratified, poststratified_curve
from lightning_budget.metrics.functional.ranking import predicted_roi
from lightning_budget.metrics.functional.ranking_bootstrap import (
    PairedRankingDifference,
    UpliftAreas,
    bootstrap_aucc,
    bootstrap_uplift,
    paired_aucc_difference,
)
from lightning_budget.metrics.functional.uniform import control_value, uniform_curve, uniform_true_curve
from lightning_budget.metrics.functional.uplift_curve import (
    RankingArea,
    UpliftCurve,
    auuc,
    qini,
    qini_curve,
    uplift_curve,
)

__all__ = [
    "BudgetPoint",
    "Calibration",
    "CostCurve",
    "Increments",
    "Influence",
    "MatchedInterval",
    "MultiplierGrid",
    "PairedDifference",
    "PairedRankingDifference",
    "RankingArea",
    "RewardCurve",
    "UpliftAreas",
    "UpliftCurve",
    "aucc",
    "auuc",
    "bootstrap_aucc",
    "bootstrap_curves",
    "bootstrap_uplift",
    "calibration",
    "calibration_of",
    "calibration_sums",
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
    "increments",
    "matched_interval",
    "normal_interval",
    "normalized_area",
    "paired_aucc_difference",
    "paired_difference",
    "paired_oracle_difference",
    "percentile_interval",
    "poisson_weights",
    "policy_curve",
    "poststratified_curve",
    "predicted_roi",
    "qini",
    "qini_curve",
    "regret",
    "reward_curve",
    "standard_error",
    "uniform_curve",
    "uniform_true_curve",
    "uplift_curve",
]
