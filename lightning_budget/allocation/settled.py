"""One pass over users for several brackets of the multiplier: whose arm is settled in each, and who stays open."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation import compiled


@dataclass(frozen=True)
class Settled:
    """What a bracket ``[low, high]`` of the multiplier leaves open of a set of users.

    Attributes:
        rows: ``[M]`` int64, ascending: users whose arm may depend on where in the bracket the multiplier lies.
        value, cost: ``[K, M]``, theirs, in the precision of the input.
        spend, worth: floats that sum exactly to what all others cost and are worth, wherever it lies; ``worth`` only
            where arms were asked for.
        finite: whether every number seen was finite.
    """

    low: float
    high: float
    rows: Tensor
    value: Tensor
    cost: Tensor
    spend: list[float]
    worth: list[float]
    finite: bool


def tie_of(bytes_each: int) -> tuple[float, float, float]:
    """Margins within which scores count as tied, for a precision.

    A relative one, several times what rounding of two scores, their products and the multiplier can add up to; an
    absolute one where numbers underflow; and the smallest multiplier whose products keep their precision.
    """
    return (1e-6, 1e-36, 1e-30) if bytes_each == 4 else (1e-12, 1e-300, 1e-290)


def arm_dtype(arms: int) -> torch.dtype:
    """The smallest integer type that counts the arms."""
    return torch.int8 if arms <= 1 << 7 else torch.int16 if arms <= 1 << 15 else torch.int64


@torch.no_grad()
def settle(
    value: Tensor, cost: Tensor, brackets: list[tuple[float, float]], arm: Tensor | None = None
) -> list[Settled]:
    """Say for each bracket whose arm is the same throughout, what they cost, and who is left.

    A lead of one arm over another is linear in λ, and so is the size it is compared with: who leads clearly at both
    ends does so in between. Scores are computed in the precision of the input and only ever settle a clear lead, so
    rounding decides nothing: whoever is near a tie at an end is left open.

    Args:
        value, cost: ``[K, N]`` float32 or float64. Contiguous over users is fastest; any strides work without a copy.
        brackets: B multipliers ``(low, high)``; ``high`` may be the largest float, where the cheapest arm wins.
        arm: ``[N]`` of :func:`arm_dtype`, gets the arm of the settled at the first bracket's upper end.
    """
    if compiled.usable(value):
        from lightning_budget.allocation.compiled import run

        return run.settle(value, cost, brackets, arm)
    from lightning_budget.allocation import settled_torch

    return settled_torch.settle(value, cost, brackets, arm)
