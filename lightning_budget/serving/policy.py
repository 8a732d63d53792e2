"""The price policy as one straight line of tensor operations, so that a program can carry it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import slopes_between


def price_treatment(value: Tensor, cost: Tensor, multiplier: Tensor) -> Tensor:
    """Every user's best treatment at a price of money, as :func:`lightning_budget.allocation.policy.policy_treatment`.

    That function walks over users in pieces and reads the multiplier on the host, which ``torch.export`` cannot follow;
    here both stay tensors. The rule is the same: ``argmax_j v_ij − λ c_ij`` by the slope between two arms, ties to the
    cheaper arm and then to the lower index.

    Args:
        value: ``[N, K]``, value units per user.
        cost: ``[N, K]``, currency per user.
        multiplier: λ, 0-dim, value per currency.

    Returns:
        Tensor: ``[N]`` int64.
    """
    values, costs, price_of_money = value.double().unbind(1), cost.double().unbind(1), multiplier.double()
    best_v, best_c = values[0], costs[0]
    arm = torch.zeros_like(best_v, dtype=torch.int64)
    for j in range(1, len(values)):
        gain, price = values[j] - best_v, costs[j] - best_c
        better = slopes_between(gain, price).gt(price_of_money) ^ (price < 0)
        better = torch.where(price == 0, gain > 0, better)
        best_v, best_c = torch.where(better, values[j], best_v), torch.where(better, costs[j], best_c)
        arm = arm.masked_fill(better, j)
    return arm
