"""Area under a cost curve, as one number for all budgets."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.cost_curve import CostCurve


def normalized_area(
    curve: CostCurve, free_spend: float | None = None, base_value: float | None = None, free_value: float | None = None
) -> Tensor:
    """Mean share, over budgets from 0 to the free spend, of the free gain that the policy already has.

    With V(b) the value at budget b (:meth:`CostCurve.at_budget`), S the free spend, V_0 the base, V_1 the free value::

        A = 1/S ∫_0^S (V(b) − V_0) / (V_1 − V_0) db

    exact, not on a grid. The straight line from (0, V_0) to (S, V_1) has 1/2, a curve that gains everything at once 1.
    Curves that end at different points are comparable only over common references: give them (say, the optimum's) where
    models are compared.

    Args:
        curve: the policy's curve, per capita.
        free_spend: S; the curve's own spend at λ = 0 unless given.
        base_value: V_0; the value of the curve's first point unless given.
        free_value: V_1; the curve's own value at λ = 0 unless given.

    Returns:
        float64 scalar.

    Raises:
        InputError: if S is not above 0, or V_1 not above V_0.
    """
    end = float(curve.spend[-1]) if free_spend is None else float(free_spend)
    base = float(curve.value[0]) if base_value is None else float(base_value)
    top = float(curve.value[-1]) if free_value is None else float(free_value)
    if not (end > 0 and top > base):
        raise InputError(
            f"free spend {end:g}, base value {base:g}, free value {top:g}",
            "free spend above 0 and free value above the base",
            "pass the references of another curve, such as the optimum",
        )
    return (_integral(curve, end) / end - base) / (top - base)


def _integral(curve: CostCurve, end: float) -> Tensor:
    """∫_0^end V(b) db, over the stretches on which V is linear: from one record of the spend to the next."""
    reached = curve.spend.cummax(0).values
    start = reached[0].clamp(0.0, end)
    before, spend_low, spend_high = reached[:-1], curve.spend[:-1], curve.spend[1:]
    value_low, value_high = curve.value[:-1], curve.value[1:]
    record = spend_high > before
    slope = torch.where(record, (value_high - value_low) / torch.where(record, spend_high - spend_low, 1.0), 0.0)
    left, right = before.clamp(0.0, end), torch.maximum(spend_high, before).clamp(0.0, end)
    middle = value_low + slope * ((left + right) / 2 - spend_low)
    stretches = torch.where(record, (right - left) * middle, 0.0).sum()
    return start * curve.value[0] + stretches + (end - reached[-1].clamp(0.0, end)) * curve.value[-1]
