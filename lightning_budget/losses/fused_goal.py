"""The goal of the default estimator in one compiled walk over a batch, where that can be had."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_budget.allocation.compiled import usable
from lightning_budget.estimators import GradientEstimator, Softmax
from lightning_budget.losses.gains import ArmsFirst, Rows, Weighting
from lightning_budget.losses.goal_state import GoalState


def can_fuse(estimator: GradientEstimator, predictions: Tensor) -> bool:
    """Whether :func:`fused_goal` can stand for this estimator on these predictions: softmax, float32, on a CPU."""
    return type(estimator) is Softmax and predictions.dtype == torch.float32 and usable(predictions)


def fused_goal(
    rows: Rows,
    own: ArmsFirst,
    base: ArmsFirst,
    state: GoalState,
    width: Tensor,
    weighting: Weighting,
    entropy: float,
) -> tuple[Tensor, Tensor]:
    """Sum of the goal over B multipliers and n users, scalar, and its gradient by value and cost, ``[2, K, n]``.

    What :class:`~lightning_budget.losses.BudgetRegularizer` computes from gains, estimator and the chain rule in some
    twenty passes over ``[B, K, n]``, equal up to rounding.

    Args:
        rows: n outcomes; own, base: predictions, and the baseline of ``doubly_robust``, float32.
        state: on the CPU, float32; width: ``[B]``, in units of the scores.
    """
    from lightning_budget.losses.compiled.softmax_goal import softmax_goal

    kind = own.value.dtype
    constants, rate = state.constants, state.rate
    v_share, c_share = torch.ones_like(rate), -rate
    base_gain = constants.value_base + c_share[:, None] * constants.cost_base
    factor = constants.factor if weighting in ("hajek", "poststratified") else torch.ones_like(constants.factor)
    weight = torch.ones_like(rows.value) if weighting == "poststratified" else 1 / rows.propensity
    model = base if weighting == "doubly_robust" else ArmsFirst(*(torch.zeros_like(own.value),) * 2)

    def array(x: Tensor) -> np.ndarray:
        return x.to(kind).contiguous().numpy()

    slopes = torch.zeros(2, *own.value.shape)
    total = softmax_goal(
        array(own.value), array(own.cost), array(model.value), array(model.cost),
        rows.treatment.int().numpy(), array(weight), array(rows.value), array(rows.cost),
        array(state.multiplier), array(width), array(v_share), array(c_share), array(base_gain), array(factor),
        np.float32(entropy), slopes[0].numpy(), slopes[1].numpy(),
    )  # fmt: skip
    return torch.tensor(total, dtype=kind), slopes
