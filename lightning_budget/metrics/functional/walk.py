"""Falling multiplier: the rows' entries and exits in order, and prefix sums over them.

Every curve here is one walk. As the multiplier falls from +inf to 0 rows (or increments) come and go; sorted once, the
state at every multiplier is a prefix sum, and a bootstrap resample is the same prefix sum with other row weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.order import by_slope


@dataclass(frozen=True)
class Walk:
    """E events over N rows, sorted by falling multiplier, in M groups of equal multiplier.

    Attributes:
        multiplier: ``[M]``, strictly descending from +inf; group m takes effect at every multiplier below it.
        end: ``[M]`` int64, the last event of each group; the points inside a tie are never seen.
        row: ``[E]`` int64, the row an event belongs to.
        mass: ``[E]`` float64 change of the denominator, or ``None`` where the denominator is the number of rows.
        value, cost: ``[E]`` float64 changes of the numerators.
        rows: N.
        weight: ``[N]`` float64, how often a row counts; ``None``: once.
        least: no row that counts adds less to the denominator, so half of that tells a row from rounding.
    """

    multiplier: Tensor
    end: Tensor
    row: Tensor
    mass: Tensor | None
    value: Tensor
    cost: Tensor
    rows: int
    weight: Tensor | None = None
    least: float = 1.0

    def points(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spend and value per capita after each group, for R weightings of the rows.

        A point whose denominator is empty has no estimate: it repeats the nearest point above it that has one (below
        it, at the start of the walk); a weighting without any gives 0.

        Args:
            weights: ``[R, N]`` whole numbers ≥ 0; without it every row counts once, R = 1.

        Returns:
            spend, value: ``[R, M]`` float64.
        """
        if weights is None:
            spend, value = self.cost.cumsum(0)[self.end][None], self.value.cumsum(0)[self.end][None]
            if self.mass is None:
                total = self.rows if self.weight is None else self.weight.sum()
                return spend / total, value / total
            return _ratio(spend, value, self.mass.cumsum(0)[self.end][None], self.least)
        picked = weights.index_select(1, self.row).double()
        spend, value = self._sums(picked, self.cost), self._sums(picked, self.value)
        if self.mass is None:
            counted = weights.double() if self.weight is None else weights * self.weight
            total = counted.sum(1, keepdim=True).clamp_(min=self.least)
            return spend.div_(total), value.div_(total)
        return _ratio(spend, value, self._sums(picked, self.mass), self.least)

    def _sums(self, picked: Tensor, change: Tensor) -> Tensor:
        sums = torch.mul(picked, change).cumsum_(1)
        return sums if len(self.end) == len(self.row) else sums.index_select(1, self.end)


def build_walk(multiplier: Tensor, row: Tensor, mass: Tensor | None, value: Tensor, cost: Tensor, rows: int) -> Walk:
    """Sort events ``[E]`` by falling multiplier; the largest one must be +inf."""
    order = by_slope(multiplier)
    group, end = groups(multiplier[order])
    return Walk(
        multiplier=group,
        end=end,
        row=row[order],
        mass=None if mass is None else mass[order],
        value=value[order],
        cost=cost[order],
        rows=rows,
    )


def groups(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ones ``[M]`` of sorted multipliers ``[E]``, and the last position of each."""
    last = torch.ones_like(multiplier, dtype=torch.bool)
    last[:-1] = multiplier[1:] != multiplier[:-1]
    end = last.nonzero().squeeze(1)
    return multiplier[end], end


def _ratio(spend: Tensor, value: Tensor, mass: Tensor, least: float) -> tuple[Tensor, Tensor]:
    held = mass > 0.5 * least
    if bool(held.all()):
        return spend / mass, value / mass
    safe = torch.where(held, mass, 1.0)
    spend, value = torch.where(held, spend / safe, 0.0), torch.where(held, value / safe, 0.0)
    here = torch.arange(mass.shape[1], device=mass.device).expand_as(mass)
    source = torch.where(held, here, held.byte().argmax(1, keepdim=True)).cummax(1).values
    return spend.gather(1, source), value.gather(1, source)


@dataclass(frozen=True)
class Crossing:
    """Where R curves meet B budgets; all ``[R, B]``.

    Attributes:
        value, spend: per capita, at the mixture of the two neighbouring points that meets the budget.
        above: int64 index of the first point that spends more than the budget; 0: the start already does, M: none does.
    """

    value: Tensor
    spend: Tensor
    above: Tensor


def first_crossing(spend: Tensor, value: Tensor, budgets: Tensor) -> Crossing:
    """Walk R curves ``[R, M]`` until the spend first exceeds each of the budgets ``[B]``, and mix back to meet it."""
    last = spend.shape[1] - 1
    budget = budgets.expand(spend.shape[0], -1).contiguous()
    above = torch.searchsorted(spend.cummax(1).values, budget, right=True)
    high, low = above.clamp(max=last), (above - 1).clamp(min=0)
    mixed = high > low
    spend_low, spend_high = spend.gather(1, low), spend.gather(1, high)
    value_low, value_high = value.gather(1, low), value.gather(1, high)
    share = torch.where(mixed, (budget - spend_low) / torch.where(mixed, spend_high - spend_low, 1.0), 0.0)
    return Crossing(value_low + share * (value_high - value_low), torch.where(mixed, budget, spend_low), above)
