"""The curve that sums over a grid of multipliers describe, and how far the exact one can be from it.

Every point of the grid is exact; between two of them the policy is mixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_budget.metrics.functional.checks import Normalization, as_budgets, check_normalization
from lightning_budget.metrics.functional.cost_curve import CostCurve
from lightning_budget.metrics.functional.grid import MultiplierGrid

_EMPTY = 1e-9
"""Of the largest denominator: what is below is rounding, not rows."""


def grid_points(
    changes: Tensor, total: Tensor | float, normalization: Normalization = "hajek"
) -> tuple[Tensor, Tensor]:
    """Spend and value ``[…, P]`` per capita from +inf down to 0, of changes ``[…, 3 or 6, P]`` and Σ s ``[…]``.

    A point without rows repeats the nearest one above that has some; at the start, the nearest below.
    """
    check_normalization(normalization)
    mass, value, cost = changes[..., :3, :].flip(-1).cumsum(-1).unbind(-2)
    if normalization == "ipw":
        size = torch.as_tensor(total, dtype=torch.float64, device=changes.device)[..., None]
        size = torch.where(size > 0, size, 1.0)
        return cost / size, value / size
    held = mass > _EMPTY * mass.amax(-1, keepdim=True)
    here = torch.arange(mass.shape[-1], device=mass.device).expand_as(mass)
    source = torch.where(held, here, held.byte().argmax(-1, keepdim=True)).cummax(-1).values
    mass = torch.where(held, mass, 1.0)
    spend, value = (torch.where(held, x / mass, 0.0).gather(-1, source) for x in (cost, value))
    return spend, value


def grid_curve(
    changes: Tensor, total: float, grid: MultiplierGrid, normalization: Normalization = "hajek"
) -> CostCurve:
    """The curve through the grid's points, from changes ``[3 or 6, P]`` of all rows, whose weights sum to ``total``."""
    spend, value = grid_points(changes, total, normalization)
    points = grid.points().to(changes.device).flip(0)
    # A point holds from its own multiplier up to the point before it.
    return CostCurve(torch.cat([points[:1], points[:-1]]), spend, value)


def grid_enclosure(
    changes: Tensor, total: float, budgets: Tensor | Sequence[float] | float, normalization: Normalization = "hajek"
) -> tuple[Tensor, Tensor]:
    """Ends ``[B]`` between which the exact curve of the same rows lies at each budget.

    Between two points of the grid, the sums move by the changes there in an unknown order: at most up by all that
    rises, and down by all that falls. The exact curve may pass the budget in any stretch whose spend can reach it, up
    to the one in which the grid's own spend does.

    Args:
        changes: ``[6, P]`` of :func:`~lightning_budget.metrics.functional.grid.grid_changes`.
        total: Σ s; budgets: ``[B]``, currency per user.
    """
    budget = as_budgets(budgets, changes.device)[:, None]
    spend, value = grid_points(changes, total, normalization)
    net, moved = changes.flip(1)[:, 1:].split(3)
    above = changes[:3].flip(1).cumsum(1)[:, :-1]
    low, high = above - (moved - net) / 2, above + (moved + net) / 2
    sizes = (low[0].clamp(min=0), high[0].clamp(min=0))
    if normalization == "ipw":
        size = torch.full_like(low[0], float(total))
        sizes = size, size
    value_low, value_high = _quotients(low[1], high[1], sizes)
    spend_high = _quotients(low[2], high[2], sizes)[1]
    passed = (spend > budget).cummax(1).values
    reached = (spend_high > budget) & ~passed[:, :-1]
    lowest = torch.where(reached, torch.minimum(value_low, value[:-1]), torch.inf).amin(1)
    highest = torch.where(reached, torch.maximum(value_high, value[:-1]), -torch.inf).amax(1)
    never, at_once = ~passed[:, -1], passed[:, 0]
    lowest = torch.where(never, lowest.clamp(max=value[-1]), lowest)
    highest = torch.where(never, highest.clamp(min=value[-1]), highest)
    return torch.where(at_once, value[0], lowest), torch.where(at_once, value[0], highest)


def _quotients(low: Tensor, high: Tensor, sizes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Least and largest of numerators between low and high over denominators between sizes; 0/0 is 0."""
    found = torch.stack([x / size for x in (low, high) for size in sizes]).nan_to_num(0.0, torch.inf, -torch.inf)
    return found.amin(0), found.amax(0)
