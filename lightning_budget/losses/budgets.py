"""Which budgets training has in view: fractions of the free spend, currency per user, or a prior over either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_budget.errors import InputError

BudgetUnit = Literal["fraction", "currency"]
"""``fraction`` of the free optimum's spend, or ``currency`` per user."""
PriorShape = Literal["uniform", "loguniform"]

_GOLDEN = (math.sqrt(5) - 1) / 2


def check_free_spend(free_spend: float) -> float:
    """What budget fractions are fractions of.

    Raises:
        InputError: if nothing would be spent.
    """
    if not 0 < free_spend < math.inf:
        raise InputError(
            f"the free optimum spends {free_spend:g} per user",
            "above 0",
            "check the cost column: no arm seems to cost anything",
        )
    return free_spend


def budget_grid(fractions: Sequence[float], free_spend: float) -> Tensor:
    """Budgets per user from fractions of the free optimum's spend.

    Args:
        fractions: each in (0, 1]; free_spend: currency per user, above 0.

    Returns:
        ``[B]`` float64, currency per user.

    Raises:
        InputError: if a fraction lies outside (0, 1] or nothing would be spent.
    """
    for f in fractions:
        if not 0 < f <= 1:
            raise InputError(f"budget fraction {f}", "(0, 1] of the free optimum's spend", "mend budgets")
    if not fractions:
        raise InputError("no budget fractions", "at least one in (0, 1]", "set budgets=[0.1,0.3]")
    return torch.tensor(fractions, dtype=torch.float64) * check_free_spend(free_spend)


@dataclass(frozen=True)
class FixedBudgets:
    """The same B budgets at every refresh.

    Attributes:
        amounts: in ``unit``, each above 0.
        unit: ``fraction`` of the free optimum's spend, or ``currency`` per user.

    Raises:
        InputError: for an amount that is not a number above 0, or an unknown unit.
    """

    amounts: tuple[float, ...]
    unit: BudgetUnit = "fraction"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        if not self.amounts:
            raise InputError("objective.budgets=[]", "at least one above 0", "set objective.budgets=[0.1,0.3]")
        for b in self.amounts:
            _check_amount("objective.budgets", b)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{b:g}" for b in self.amounts)

    def draw(self, refresh: int) -> tuple[float, ...]:
        return self.amounts


@dataclass(frozen=True)
class BudgetPrior:
    """Budgets spread over an interval, other ones at every refresh.

    Refresh r takes the quantiles ``(k + frac(r φ)) / count``, k = 0 … count − 1, with φ the golden ratio: each refresh
    covers the prior evenly, the refreshes together fill it, and none needs a random number.

    Attributes:
        shape: ``uniform``, or ``loguniform`` where budgets of all magnitudes matter alike.
        low, high: ends of the interval, 0 < low < high.
        count: B, budgets at a time.
        unit: as of :class:`FixedBudgets`.

    Raises:
        InputError: for an unknown shape or unit, an interval out of range, or no budgets.
    """

    shape: PriorShape
    low: float
    high: float
    count: int = 8
    unit: BudgetUnit = "fraction"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        if self.shape not in get_args(PriorShape):
            raise InputError(
                f"objective.budgets.shape={self.shape!r}", ", ".join(get_args(PriorShape)), "choose one of the allowed"
            )
        _check_amount("objective.budgets.low", self.low)
        _check_amount("objective.budgets.high", self.high)
        if self.low >= self.high:
            raise InputError(
                f"objective.budgets from {self.low:g} to {self.high:g}", "low below high", "exchange the two"
            )
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            found = f"objective.budgets.count={self.count!r}"
            raise InputError(found, "a whole number of at least 1", "8 cover an interval well")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"quantile{k}" for k in range(self.count))

    def draw(self, refresh: int) -> tuple[float, ...]:
        shift = math.modf(refresh * _GOLDEN)[0]
        return tuple(self._quantile((k + shift) / self.count) for k in range(self.count))

    def _quantile(self, u: float) -> float:
        if self.shape == "uniform":
            return self.low + u * (self.high - self.low)
        return self.low * (self.high / self.low) ** u


Budgets = FixedBudgets | BudgetPrior


def budgets_per_user(budgets: Budgets, refresh: int, free_spend: float) -> Tensor:
    """The budgets of one refresh, ``[B]`` float64, currency per user.

    Args:
        budgets: which; refresh: its number from 0.
        free_spend: currency per user, what fractions refer to.

    Raises:
        InputError: if fractions are asked for and nothing would be spent.
    """
    scale = check_free_spend(free_spend) if budgets.unit == "fraction" else 1.0
    return torch.tensor(budgets.draw(refresh), dtype=torch.float64) * scale


def parse_budgets(config: Sequence[float] | Mapping[str, Any], unit: str = "fraction") -> Budgets:
    """From a config: a list of amounts, or ``{shape, low, high, count}`` of a prior.

    Raises:
        InputError: for what neither class takes.
    """
    try:
        if isinstance(config, Mapping):
            return BudgetPrior(**config, unit=unit)  # type: ignore[arg-type]  # checked there
        return FixedBudgets(tuple(config), unit)  # type: ignore[arg-type]  # checked there
    except TypeError:
        raise InputError(
            f"objective.budgets={config!r}",
            "a list of amounts, or shape, low, high and count",
            "write objective.budgets={shape: uniform, low: 0.05, high: 0.5, count: 8}",
        ) from None


def _check_unit(unit: str) -> None:
    if unit not in get_args(BudgetUnit):
        raise InputError(
            f"objective.budget_unit={unit!r}", ", ".join(get_args(BudgetUnit)), "choose one of the allowed"
        )


def _check_amount(name: str, amount: object) -> None:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
        raise InputError(f"{name}={amount!r}", "finite numbers above 0", "write a number such as 0.3, without quotes")
