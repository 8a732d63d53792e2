"""The one door where the numbers of an allocation are checked."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.allocation.summation import exact_sum
from lightning_budget.errors import InputError


def check_predictions(value: Tensor, cost: Tensor) -> None:
    """Refuse predictions that are not two equal, finite ``[N, K]`` floating tensors with N, K > 0."""
    check_shapes(value, cost)
    check_finite(value, cost)


def check_shapes(value: Tensor, cost: Tensor) -> None:
    """Refuse all that can be seen without reading the numbers."""
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
    if value.dtype != cost.dtype:
        raise InputError(
            f"value is {value.dtype} and cost {cost.dtype}", "one dtype", "convert one of them, as with cost.float()"
        )
    if value.device != cost.device:
        raise InputError(
            f"value is on {value.device} and cost on {cost.device}", "one device", "move both to the same device"
        )


def check_finite(value: Tensor, cost: Tensor) -> None:
    """Refuse NaN and infinity, and say where the first one is."""
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
