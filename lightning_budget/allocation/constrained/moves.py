"""Moving users between treatments: what single moves and ordered lists of moves do to the limits."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block

ROUNDING = 1e-12


class Assignment:
    """One treatment per user of a block, and what that uses.

    Attributes:
        block: the users.
        treatment: ``[n]`` int64.
        used: ``[P]`` float64.
    """

    def __init__(self, block: Block, treatment: Tensor) -> None:
        self.block, self.treatment = block, treatment
        self.used = block.used(block.given(treatment))

    @property
    def excess(self) -> Tensor:
        """``[P]``: usage above the limit, below 0 where there is room."""
        return self.used - self.block.limit

    @property
    def fits(self) -> bool:
        """Whether every limit holds, up to rounding of sums; an exact recount has the last word."""
        return not bool((self.excess > self.rounding).any())

    @property
    def worth(self) -> float:
        """Value of all users of the block."""
        return float(self.block.value.gather(0, self.treatment[None]).sum())

    @property
    def rounding(self) -> Tensor:
        """``[P]``: what sums of this size may differ by."""
        return ROUNDING * (1 + self.block.limit.abs())

    def change(self) -> Tensor:
        """``[R, K, n]``: usage that each move to another treatment adds."""
        return self.block.usage - self.block.given(self.treatment)[:, None]

    def give(self, users: Tensor, treatments: Tensor) -> None:
        """Move different users; what is used is summed anew, so that no rounding collects."""
        self.treatment = self.treatment.index_copy(0, users, treatments)
        self.used = self.block.used(self.block.given(self.treatment))

    def violation(self, weight: Tensor) -> float:
        """Weighted usage above the limits, all together."""
        return float((weight * self.excess.clamp(min=0)).sum())


def running(added: Tensor, index: Tensor) -> Tensor:
    """``[R, L]``: usage that an ordered list of moves has added to the group of each, itself included."""
    order = index.argsort(dim=1, stable=True)
    total = added.gather(1, order).cumsum(dim=1)
    group = index.gather(1, order)
    first = torch.ones_like(group, dtype=torch.bool)
    first[:, 1:] = group[:, 1:] != group[:, :-1]
    before = total - added.gather(1, order)
    # The sum before a group's first move is carried over the group: positions only grow, so a running maximum does it.
    start = torch.where(first, torch.arange(group.shape[1], device=group.device), 0).cummax(dim=1).values
    return torch.empty_like(total).scatter_(1, order, total - before.gather(1, start))
