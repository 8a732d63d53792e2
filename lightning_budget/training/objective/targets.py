"""At what the goal is measured: budgets, or multipliers of a dual goal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.losses.budgets import Budgets, FixedBudgets, budgets_per_user


@dataclass(frozen=True)
class Targets:
    """B budgets whose multipliers are solved at every refresh, or B multipliers that are taken as they are.

    Attributes:
        budgets: what the multipliers meet.
        multipliers: instead, value per currency.

    Raises:
        InputError: if there are no multipliers, or one is negative or not finite.
    """

    budgets: Budgets = field(default_factory=lambda: FixedBudgets((0.05, 0.1, 0.2, 0.3, 0.5)))
    multipliers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.multipliers is None:
            return
        if not self.multipliers or not all(0 <= m < math.inf for m in self.multipliers):
            raise InputError(
                f"objective.multipliers={list(self.multipliers)}",
                "numbers of 0 or more, value per currency",
                "mend them",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What each of the B is called where it is logged."""
        if self.multipliers is None:
            return self.budgets.names
        return tuple(f"lambda{m:g}" for m in self.multipliers)

    def budgets_at(self, refresh: int, free_spend: float) -> Tensor | None:
        """``[B]`` float64, currency per user, of refresh number ``refresh``; ``None`` where multipliers are given."""
        return None if self.multipliers is not None else budgets_per_user(self.budgets, refresh, free_spend)
