"""Distance from the best that the budget could buy, where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_budget.metrics.functional.cost_curve import CostCurve


def regret(policy: CostCurve, oracle: CostCurve, budgets: Tensor | Sequence[float] | float) -> Tensor:
    """Value per user that the policy leaves on the table, V*(b) − V(b).

    Never below 0 (to rounding) at budgets the policy can keep, because mixing two policies is a feasible point of the
    linear relaxation whose optimum V* is.

    Args:
        policy: ``policy_curve(value_hat, cost_hat, true_value, true_cost)``.
        oracle: ``policy_curve(true_value, true_cost, true_value, true_cost)``.
        budgets: ``[B]``, currency per user.

    Returns:
        ``[B]`` float64, value units per user.

    Raises:
        InputError: if a budget is NaN or not above 0.
    """
    return oracle.at_budget(budgets).value - policy.at_budget(budgets).value
