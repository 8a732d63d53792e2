"""What a budget earns without a model: everyone at control, and incentives handed out blindly."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import (
    Normalization,
    check_normalization,
    check_outcomes,
    check_responses,
    check_treatment,
    check_weight,
)
from lightning_budget.metrics.functional.cost_curve import CostCurve


def control_value(
    treatment: Tensor, value: Tensor, propensity: Tensor, normalization: Normalization = "hajek"
) -> Tensor:
    """Value per user if everyone is at control.

    Σ w y / Σ w (``hajek``) or Σ w y / N (``ipw``) with w_i = 1[t_i = 0] / p_i.

    Args:
        treatment: ``[N]`` int64, the arm given.
        value: ``[N]``, observed under it.
        propensity: ``[N]``, its probability.
        normalization: ``hajek`` or ``ipw``.

    Returns:
        float64 scalar, value units per user.

    Raises:
        InputError: on input that :func:`cost_curve` refuses, or when no row is at control.
    """
    _check(treatment, value, torch.zeros_like(value), propensity, num_treatments=None, normalization=normalization)
    return _arm_means(treatment, value, propensity, 1, normalization)[0]


def uniform_curve(
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    num_treatments: int,
    normalization: Normalization = "hajek",
    weight: Tensor | None = None,
) -> CostCurve:
    """The policy that gives a random share of users a random incentive, estimated on randomized logs.

    Two points: everyone at control, and everyone at an arm drawn uniformly from 1 … K − 1; budgets between them are met
    by the share of users treated.

    Args:
        treatment: ``[N]`` int64, the arm given.
        value: ``[N]``, observed under the arm given.
        cost: ``[N]``, observed under the arm given.
        propensity: ``[N]``, probability of the arm given.
        num_treatments: K ≥ 2.
        normalization: ``hajek`` or ``ipw`` mean of each arm.
        weight: ``[N]`` ≥ 0, how often a row counts.

    Raises:
        InputError: on input that :func:`cost_curve` refuses, or when an arm has no rows.
    """
    _check(treatment, value, cost, propensity, num_treatments, normalization)
    check_weight(weight, len(treatment))
    values = _arm_means(treatment, value, propensity, num_treatments, normalization, weight)
    costs = _arm_means(treatment, cost, propensity, num_treatments, normalization, weight)
    return _two_points(values, costs)


def uniform_true_curve(true_value: Tensor, true_cost: Tensor, weight: Tensor | None = None) -> CostCurve:
    """The policy of :func:`uniform_curve` under known means ``[N, K]``; ``weight [N]``: how often a user counts.

    Raises:
        InputError: if shapes differ, an entry is not finite, or weights are negative or all 0.
    """
    check_responses(true_value, true_cost, "true")
    check_weight(weight, len(true_value))
    if weight is None:
        return _two_points(true_value.double().mean(0), true_cost.double().mean(0))
    share = weight.double() / weight.double().sum()
    return _two_points(share @ true_value.double(), share @ true_cost.double())


def _check(
    treatment: Tensor, value: Tensor, cost: Tensor, propensity: Tensor, num_treatments: int | None, normalization: str
) -> None:
    check_outcomes(value, cost, propensity, len(treatment))
    arms = 2**31 if num_treatments is None else num_treatments
    check_treatment(treatment, len(treatment), arms)
    check_normalization(normalization)
    if arms < 2:
        raise InputError(f"num_treatments={arms}", "at least 2", "count control as an arm")
    required = 1 if num_treatments is None else arms
    rows = torch.bincount(treatment.long(), minlength=required)[:required]
    if bool((rows == 0).any()):
        raise InputError(
            f"no rows with treatment {(rows == 0).nonzero().squeeze(1).tolist()}",
            "rows of every arm",
            "check the split and the arm numbers",
        )


def _arm_means(
    treatment: Tensor,
    outcome: Tensor,
    propensity: Tensor,
    arms: int,
    normalization: Normalization,
    count: Tensor | None = None,
) -> Tensor:
    kept = (treatment < arms).double() if count is None else (treatment < arms) * count.double()
    size = len(treatment) if count is None else count.double().sum()
    weight = kept / propensity.double()
    arm = torch.where(treatment < arms, treatment, 0).long()

    def sums(x: Tensor) -> Tensor:
        return x.new_zeros(arms).index_add_(0, arm, x)

    return sums(weight * outcome.double()) / (sums(weight) if normalization == "hajek" else size)


def _two_points(values: Tensor, costs: Tensor) -> CostCurve:
    multiplier = torch.tensor([torch.inf, 0.0], dtype=torch.float64, device=values.device)
    return CostCurve(multiplier, torch.stack([costs[0], costs[1:].mean()]), torch.stack([values[0], values[1:].mean()]))
