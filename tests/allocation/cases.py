"""Problems of a few hundred users, each with something that breaks careless narrowing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.allocation.reference import random_problem

Make = Callable[[], tuple[Tensor, Tensor]]


def plain() -> tuple[Tensor, Tensor]:
    return random_problem(1, 900, 4)


def massive_ties() -> tuple[Tensor, Tensor]:
    """Nearly every user has one of a few slopes: no bracket separates them."""
    return random_problem(2, 900, 4, grid=True)


def one_slope() -> tuple[Tensor, Tensor]:
    cost = torch.cat([torch.zeros(900, 1), torch.rand(900, 1, generator=torch.Generator().manual_seed(3))], 1)
    return 2 * cost.double(), cost.double()


def duplicate_arms() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(4, 900, 3)
    return value[:, [0, 1, 1, 2, 0]], cost[:, [0, 1, 1, 2, 0]]


def zero_cost_arms() -> tuple[Tensor, Tensor]:
    """The best arm of a third of the users is free, and a few users have nothing but free arms."""
    value, cost = random_problem(5, 900, 5)
    cost[:, 3] = 0
    value[::3, 3] += 10
    cost[::11] = 0
    return value, cost


def costs_above_one() -> tuple[Tensor, Tensor]:
    """Even the control costs: scores at the largest multiplier overflow for every arm."""
    value, cost = random_problem(6, 900, 4)
    return value, 3 + cost


def negative_costs() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(7, 900, 4)
    return value, cost - 0.4


def many_magnitudes() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(8, 900, 4)
    scale = torch.logspace(-12, 12, 900, dtype=torch.float64)[:, None]
    return value * scale, cost * scale


def single_precision() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(9, 900, 4)
    return value.float(), cost.float()


PROBLEMS = [
    plain,
    massive_ties,
    one_slope,
    duplicate_arms,
    zero_cost_arms,
    costs_above_one,
    negative_costs,
    many_magnitudes,
    single_precision,
]
