"""Slow, obvious versions of what the allocator computes."""

from __future__ import annotations

import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix, eye, kron
from torch import Tensor

from lightning_budget.allocation import efficient_frontier

LARGEST = sys.float_info.max


def random_problem(seed: int, users: int, arms: int, grid: bool = False) -> tuple[Tensor, Tensor]:
    """Free control and noisy, partly dominated arms; on a coarse grid almost everything ties."""
    g = torch.Generator().manual_seed(seed)
    cost = torch.cat([torch.zeros(users, 1), torch.rand(users, arms - 1, generator=g).cumsum(1)], dim=1).double()
    noise = torch.randn(users, arms, generator=g).double()
    value = 2 * torch.rand(users, 1, generator=g).double() * cost.sqrt() + 0.3 * noise
    return ((value * 4).round(), (cost * 2).round()) if grid else (value, cost)


def given(x: Tensor, treatment: Tensor) -> Tensor:
    return x.double().gather(1, treatment.long()[:, None])[:, 0]


def recount(x: Tensor, treatment: Tensor) -> float:
    """Correctly rounded float64 total of the treatments given."""
    return math.fsum(given(x, treatment).tolist())


def budget_between(cost: Tensor, value: Tensor, share: float) -> float:
    """A total budget that share of the way from the least spend to the free optimum's spend."""
    least = math.fsum(cost.double().amin(1).tolist())
    free = recount(cost, value.argmax(1))
    return least + share * (free - least)


def highs(value: Tensor, cost: Tensor, budget: float, integer: bool) -> float:
    """Optimum of the knapsack or of its linear relaxation by HiGHS."""
    users, arms = value.shape
    v, c = value.double().numpy().ravel(), cost.double().numpy().ravel()
    one_each = csr_matrix(kron(eye(users), np.ones((1, arms))))
    if integer:
        rules = [LinearConstraint(csr_matrix(c), ub=budget), LinearConstraint(one_each, lb=1, ub=1)]
        result = milp(
            -v, constraints=rules, bounds=Bounds(0, 1), integrality=np.ones_like(v), options={"mip_rel_gap": 0}
        )
    else:
        result = linprog(
            -v, A_ub=csr_matrix(c), b_ub=[budget], A_eq=one_each, b_eq=np.ones(users), bounds=(0, 1), method="highs"
        )
    assert result.status == 0, result.message
    return -result.fun


def best_by_enumeration(value: Tensor, cost: Tensor, budget: float) -> float:
    """Best value over all K^N allocations within the budget."""
    users, arms = value.shape
    best = -math.inf
    for choice in itertools.product(range(arms), repeat=users):
        t = torch.tensor(choice)
        if recount(cost, t) <= budget:
            best = max(best, recount(value, t))
    return best


def policy_by_loop(value: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """Largest score, then least cost, then lowest index; exact where the products are (small integers)."""
    rows = zip(value.tolist(), cost.tolist(), strict=True)
    return torch.tensor([min(range(len(v)), key=lambda j: (-(v[j] - multiplier * c[j]), c[j], j)) for v, c in rows])


def multiplier_by_fractions(value: Tensor, cost: Tensor, budget: float) -> float:
    """First of 0 and all pairwise slopes, ascending, whose policy fits; in exact arithmetic."""
    rows = [
        [(Fraction(v), Fraction(c)) for v, c in zip(vs, cs, strict=True)]
        for vs, cs in zip(value.tolist(), cost.tolist(), strict=True)
    ]
    slopes = {Fraction(0)}
    for row in rows:
        slopes |= {(v - u) / (c - d) for v, c in row for u, d in row if c > d and v > u}
    for slope in sorted(slopes):
        spend = sum(min((slope * c - v, c) for v, c in row)[1] for row in rows)
        if spend <= budget:
            return float(slope)
    raise AssertionError("no multiplier fits")


def largest_step(value: Tensor, cost: Tensor) -> float:
    """Largest value of one step of one user's frontier."""
    f = efficient_frontier(value, cost)
    if not len(f.user):
        return 0.0
    v = value.double()
    return float((v[f.user, f.arm] - v[f.user, f.previous]).max())


def by_slopes(value: list[float], cost: list[float], multiplier: float) -> int:
    """Arm of one user: arms compared in turn by the slope between them, as the policy is defined."""
    best = 0
    for j in range(1, len(value)):
        gain, price = value[j] - value[best], cost[j] - cost[best]
        if (gain > 0) if price == 0 else ((min(gain / price, LARGEST) > multiplier) != (price < 0)):
            best = j
    return best


def climb(value: list[float], cost: list[float]) -> list[tuple[float, int, int]]:
    """Steps (slope, from, to) of one user's frontier, by gift wrapping."""
    at = min(range(len(value)), key=lambda j: (cost[j], -value[j], j))
    steps, bound = [], LARGEST
    while up := [j for j in range(len(value)) if value[j] > value[at] and cost[j] > cost[at]]:
        slope = {j: min((value[j] - value[at]) / (cost[j] - cost[at]), LARGEST) for j in up}
        to = max(up, key=lambda j: (slope[j], cost[j], value[j], -j))
        if slope[to] == 0:
            break
        bound = min(bound, slope[to])
        steps.append((bound, at, to))
        at = to
    return steps


def allocate_by_loops(value: Tensor, cost: Tensor, budget: float, key: list[int]) -> tuple[float, list[int]]:
    """Multiplier and arms: every breakpoint tried with an exact sum, then step after step as long as it fits."""
    rows = list(zip(value.double().tolist(), cost.double().tolist(), strict=True))
    steps = [(slope, key[i], i, a, b) for i, row in enumerate(rows) for slope, a, b in climb(*row)]
    for multiplier in [0.0, *sorted({s[0] for s in steps})]:
        arm = [by_slopes(v, c, multiplier) for v, c in rows]
        left = budget - math.fsum(c[a] for (_, c), a in zip(rows, arm, strict=True))
        if left >= 0:
            break
    else:
        raise AssertionError("no multiplier fits")
    blocked: set[int] = set()
    for slope, _, i, a, b in sorted((s for s in steps), key=lambda s: (-s[0], s[1])):
        if slope > multiplier or multiplier == 0 or i in blocked or arm[i] != a:
            continue
        arm[i] = b
        if math.fsum(c[a] for (_, c), a in zip(rows, arm, strict=True)) > budget:
            arm[i] = a
            blocked.add(i)
    return multiplier, arm
