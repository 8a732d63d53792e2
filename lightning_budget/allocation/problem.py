"""The allocation problem, and the one door where its numbers are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.summation import exact_sum
from lightning_budget.errors import InputError


@dataclass(frozen=True)
class AllocationProblem:
    r"""One treatment per user under one budget, a multiple-choice knapsack.

    .. math:: \max_z \sum_{ij} v_{ij} z_{ij} \quad\text{s.t.}\quad
        \sum_{ij} c_{ij} z_{ij} \le B,\; \sum_j z_{ij} = 1,\; z_{ij} \in \{0, 1\}

    Arms may cost less than nothing or be worth less than nothing.

    Attributes:
        value: ``[N, K]`` floating, value units per user.
        cost: ``[N, K]`` floating, currency per user.
        budget: **total** currency :math:`B` for the N users.

    Raises:
        InputError: if shapes, types or devices disagree, an entry is not finite, or the budget is not positive or
            lies below the least feasible spend :math:`\sum_i \min_j c_{ij}`.

    Source:
        Sinha, Zoltners 1979, doi:10.1287/opre.27.3.503.
    """

    value: Tensor
    cost: Tensor
    budget: float

    def __post_init__(self) -> None:
        check_predictions(self.value, self.cost)
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise InputError(
                f"budget={self.budget}", "a finite total budget above 0", "give currency for all users together"
            )
        check_feasible(self.cost, self.budget)


def check_predictions(value: Tensor, cost: Tensor) -> None:
    """Refuse predictions that are not two equal, finite ``[N, K]`` floating tensors with N, K > 0."""
    for name, x in (("value", value), ("cost", cost)):
        if x.dim() != 2 or 0 in x.shape:
            raise InputError(
                f"{name} has shape {list(x.shape)}",
                "[N users, K treatments], both above 0",
                "give one row per user, one column per arm",
            )
        if not x.is_floating_point():
            raise InputError(f"{name} has dtype {x.dtype}", "a floating dtype", f"convert it with {name}.float()")
    if value.shape != cost.shape:
        raise InputError(
            f"value has shape {list(value.shape)} and cost {list(cost.shape)}",
            "equal shapes",
            "predict both for the same users and arms",
        )
    if value.device != cost.device:
        raise InputError(
            f"value is on {value.device} and cost on {cost.device}", "one device", "move both to the same device"
        )
    for name, x in (("value", value), ("cost", cost)):
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            user, arm = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"{name}[{user}, {arm}] is {float(x[user, arm])}",
                "finite numbers",
                "look for NaN or overflow in the predictions",
            )


def check_feasible(cost: Tensor, budget: float) -> None:
    """Refuse a total budget that even the cheapest arm for everyone overspends."""
    least = exact_sum(cost.amin(dim=1))
    if budget < least:
        raise InputError(
            f"budget={budget!r} in total",
            f"at least {least!r}, the least feasible spend",
            "raise the budget or add a cheaper treatment, such as a free control arm",
        )
