"""Expected outcome metric (EOM) of a model's policy on randomized logs, at budgets or at multipliers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.cost_curve import BudgetPoint, CostCurve, cost_curve

Numbers = Tensor | Sequence[float] | float


def eom_hajek(
    value_hat: Tensor,
    cost_hat: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    *,
    budgets: Numbers | None = None,
    multiplier: Numbers | None = None,
    weight: Tensor | None = None,
) -> BudgetPoint:
    """Self-normalised EOM, Σ w y / Σ w with w_i = 1[t_i = π_λ(i)] / p_i.

    At budgets, λ is where the spend estimated in the same way meets the budget (:meth:`CostCurve.at_budget`).
    Consistent, with a bias of order 1/n in the n matched rows; a constant added to every value is added to the result.

    Args:
        value_hat: ``[N, K]`` predictions that make the policy, value units per user.
        cost_hat: ``[N, K]``, currency per user.
        treatment: ``[N]`` int64, the arm given.
        value: ``[N]``, observed under the arm given.
        cost: ``[N]``, observed under the arm given.
        propensity: ``[N]``, probability of the arm given.
        budgets: ``[B]``, currency per user.
        multiplier: ``[B]`` ≥ 0, value per currency; give either this or ``budgets``.
        weight: ``[N]`` ≥ 0, how often a row counts.

    Raises:
        InputError: on input that :func:`cost_curve` refuses, or unless exactly one of budgets and multiplier is given.

    Source: Zhang et al. 2026, arXiv 2608.11675, after Yan et al. 2023, arXiv 2302.04477.
    """
    return at_one(
        cost_curve(value_hat, cost_hat, treatment, value, cost, propensity, "hajek", weight), budgets, multiplier
    )


def eom_ipw(
    value_hat: Tensor,
    cost_hat: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    *,
    budgets: Numbers | None = None,
    multiplier: Numbers | None = None,
    weight: Tensor | None = None,
) -> BudgetPoint:
    """Inverse-propensity EOM, (1/N) Σ w y with w_i = 1[t_i = π_λ(i)] / p_i; unbiased at a fixed multiplier.

    Arguments, result and errors as :func:`eom_hajek`.

    Source: Zhao, Fang, Simchi-Levi 2017, arXiv 1705.08492.
    """
    return at_one(
        cost_curve(value_hat, cost_hat, treatment, value, cost, propensity, "ipw", weight), budgets, multiplier
    )


def at_one(curve: CostCurve, budgets: Numbers | None, multiplier: Numbers | None) -> BudgetPoint:
    """The curve at budgets or at multipliers, whichever of the two is given."""
    if budgets is not None and multiplier is None:
        return curve.at_budget(budgets)
    if multiplier is not None and budgets is None:
        return curve.at_multiplier(multiplier)
    given = "neither" if budgets is None else "both"
    raise InputError(f"{given} of budgets and multiplier given", "exactly one", "pass budgets=… or multiplier=…")
