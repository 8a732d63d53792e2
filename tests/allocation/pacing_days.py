"""Days of traffic for the pacing tests: users, what their treatments really cost, and a loop that spends a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation import PacedPolicy, SlopeSketch, allocate

PER_USER = 0.25


def users(seed: int, number: int, drift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Free control and four priced arms; values grow over the day by ``drift``, from half below to half above."""
    g = torch.Generator().manual_seed(seed)
    cost = torch.cat([torch.zeros(number, 1), torch.rand(number, 4, generator=g).cumsum(1)], dim=1).double()
    trend = 1 + drift * (torch.linspace(0, 1, number).double()[:, None] - 0.5)
    value = 2 * torch.rand(number, 1, generator=g).double() * cost.sqrt() * trend
    return value + 0.1 * torch.randn(number, 5, generator=g).double(), cost


@dataclass(frozen=True)
class Day:
    """A day as it really comes: N users with value and predicted cost ``[N, 5]``, and real cost."""

    value: Tensor
    cost: Tensor
    real: Tensor

    @classmethod
    def draw(cls, number: int, bias: float = 1.0, drift: float = 0.0, noisy: bool = False) -> Day:
        """Real costs are ``bias`` times the predicted ones, or, if noisy, nothing or twice that with equal chances."""
        value, cost = users(1, number, drift)
        coin = torch.rand(number, 1, generator=torch.Generator().manual_seed(2)) < 0.5
        return cls(value, cost, bias * cost * (2 * coin.double() if noisy else 1.0))

    def hindsight(self, budget: float, first: int = 0) -> float:
        """The best that could have been had, all users from the first on and their real costs known."""
        return allocate(self.value[first:], self.real[first:], budget).value

    def run(
        self, choose: Callable[[list[float], list[float]], int], report: Callable[[float, float], object], every: int,
        first: int = 0,
    ) -> Outcome:  # fmt: skip
        """Give every user in turn a treatment; tell the spend, and the share of the users that came, every so often."""
        spent, earned, dearest = [0.0], 0.0, 0.0
        rows = zip(self.value.tolist(), self.cost.tolist(), self.real.tolist(), strict=True)
        for i, (value, cost, real) in enumerate(rows):
            if i >= first:
                arm = choose(value, cost)
                spent.append(spent[-1] + real[arm])
                earned += value[arm]
                dearest = max(dearest, real[arm])
                if (i + 1) % every == 0:
                    report(spent[-1], (i + 1) / len(self.value))
        return Outcome(spent, earned, dearest)


@dataclass(frozen=True)
class Outcome:
    """Spend after each decision, total value, and what the dearest decision cost."""

    spent: list[float]
    value: float
    dearest: float


def paced(expected: int) -> tuple[PacedPolicy, float]:
    """A pace for so many users, from a sketch of others, and its budget."""
    budget = PER_USER * expected
    return PacedPolicy(SlopeSketch().add(*users(3, 20_000)), budget, expected), budget


def no_report(spend: float, share: float) -> float:
    """For a multiplier that never changes."""
    return math.nan
