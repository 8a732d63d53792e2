"""Constrained problems drawn at random, and slow, obvious versions of what the solver computes for them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix, eye, kron
from torch import Tensor

from lightning_budget.allocation.constrained import (
    ConstrainedProblem,
    Constraint,
    budget,
    least_users,
    most_users,
    roi_floor,
)
from lightning_budget.allocation.constrained.problem import ReturnOnCost

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """The problem as a table of numbers, built user by user; every limit is an ``at most``.

    Attributes:
        value: ``[N, K]``; usage: ``[P, N, K]``; limit: ``[P]``; allowed: ``[N, K]`` bool.
        names: of the P limits.
    """

    value: Array
    usage: Array
    limit: Array
    allowed: NDArray[np.bool_]
    names: list[str]


def matrix_of(problem: ConstrainedProblem) -> Matrix:
    value, cost = problem.value.double().numpy(), problem.cost.double().numpy()
    users, arms = value.shape
    allowed = np.ones((users, arms), bool) if problem.eligible is None else problem.eligible.numpy().copy()
    for i in range(users):
        if problem.must_treat is not None and problem.must_treat[i]:
            allowed[i, 0] = False
        if problem.never_treat is not None and problem.never_treat[i]:
            allowed[i, 1:] = False
    usages, limits, names = [], [], []
    for c in problem.constraints:
        table = np.zeros((users, arms))
        for j in range(arms) if c.treatments is None else sorted(set(c.treatments)):
            if c.usage is None:
                table[:, j] = cost[:, j]
            elif isinstance(c.usage, ReturnOnCost):
                table[:, j] = (value[:, j] - value[:, 0]) - c.usage.floor * (cost[:, j] - cost[:, 0])
            elif isinstance(c.usage, Tensor):
                table[:, j] = c.usage.double().numpy()[..., j]
            else:
                table[:, j] = c.usage
        sign = -1.0 if c.at_least else 1.0
        for g, limit in enumerate(torch.as_tensor(c.limit, dtype=torch.float64).reshape(-1).tolist()):
            inside = np.ones(users, bool) if c.users is None else c.users.numpy() == (g if c.grouped else True)
            usages.append(sign * table * inside[:, None])
            limits.append(sign * limit)
            names.append(f"{c.name}[{g}]" if c.grouped else c.name)
    usage = np.array(usages) if usages else np.zeros((0, users, arms))
    return Matrix(value, usage, np.array(limits, dtype=np.float64), allowed, names)


def used(m: Matrix, treatment: Tensor | list[int]) -> list[float]:
    """Correctly rounded usage of every limit."""
    t = np.asarray(treatment)
    return [math.fsum(row[np.arange(len(t)), t]) for row in m.usage]


def worth(m: Matrix, treatment: Tensor | list[int]) -> float:
    t = np.asarray(treatment)
    return math.fsum(m.value[np.arange(len(t)), t])


def keeps_all(m: Matrix, treatment: Tensor | list[int]) -> bool:
    """Every treatment allowed and every limit kept, without a tolerance."""
    t = np.asarray(treatment)
    return bool(m.allowed[np.arange(len(t)), t].all()) and all(
        u <= b for u, b in zip(used(m, treatment), m.limit, strict=True)
    )


def best_by_enumeration(m: Matrix) -> float:
    """Best value over all allocations within the limits; −inf where there is none."""
    best = -math.inf
    for choice in itertools.product(*(np.flatnonzero(row) for row in m.allowed)):
        if keeps_all(m, [int(a) for a in choice]):
            best = max(best, worth(m, [int(a) for a in choice]))
    return best


def _rules(m: Matrix, only: list[int] | None) -> tuple[Any, Any, Any]:
    rows = list(range(len(m.limit))) if only is None else only
    users, arms = m.value.shape
    return csr_matrix(m.usage[rows].reshape(len(rows), -1)), m.limit[rows], kron(eye(users), np.ones((1, arms)))


def linear_optimum(m: Matrix, only: list[int] | None = None) -> float | None:
    """Optimum of the linear relaxation by HiGHS, under these limits alone; ``None`` where it is infeasible."""
    usage, limit, one_each = _rules(m, only)
    bounds = np.stack([np.zeros(m.value.size), m.allowed.ravel().astype(float)], axis=1)
    r = linprog(
        -m.value.ravel(),
        A_ub=usage if len(limit) else None,
        b_ub=limit if len(limit) else None,
        A_eq=one_each,
        b_eq=np.ones(len(m.value)),
        bounds=bounds,
        method="highs",
    )
    assert r.status in (0, 2), r.message
    return -r.fun if r.status == 0 else None


def whole_optimum(m: Matrix, seconds: float = 10.0) -> tuple[float, float] | None:
    """Best whole allocation that HiGHS found and its proven bound; ``None`` where it proves there is none."""
    usage, limit, one_each = _rules(m, None)
    top: Any = m.allowed.ravel().astype(float)
    rules = [LinearConstraint(one_each, 1, 1)] + ([LinearConstraint(usage, ub=limit)] if len(limit) else [])
    r = milp(
        -m.value.ravel(),
        constraints=rules,
        bounds=Bounds(0, top),
        integrality=np.ones(m.value.size),
        options={"mip_rel_gap": 1e-5, "time_limit": seconds},
    )
    if r.status == 2:
        return None
    return (-r.fun if r.x is not None else -math.inf), -r.mip_dual_bound


def room_needed(m: Matrix) -> float:
    """By how much of each one's own scale all limits must give way together for the linear relaxation to hold."""
    usage, limit, one_each = _rules(m, None)
    scale = np.abs(limit) + np.abs(m.usage).max(axis=(1, 2)) + 1e-300
    n = m.value.size
    r = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=np.c_[usage.toarray(), -scale],
        b_ub=limit,
        A_eq=np.c_[one_each.toarray(), np.zeros(len(m.value))],
        b_eq=np.ones(len(m.value)),
        bounds=[(0, float(a)) for a in m.allowed.ravel()] + [(None, None)],
        method="highs",
    )
    assert r.status == 0, r.message
    return float(r.fun)


def random_problem(
    seed: int,
    users: int,
    arms: int,
    count: int,
    *,
    grid: bool = False,
    dtype: torch.dtype = torch.float64,
    room: float | None = None,
    masks: bool = True,
) -> ConstrainedProblem:
    """Constraints of every kind around a random allocation, which keeps them all.

    Args:
        count: constraints; they are drawn from nine kinds.
        grid: values and costs are small whole numbers, so that almost everything ties.
        room: share of an average user's usage that each limit leaves to that allocation per user; drawn anew for each
            if not given, among nothing, little and plenty. Below 0 the allocation misses every limit.
        masks: eligibility, must and never treat.
    """
    rng = np.random.default_rng(seed)
    cost = np.concatenate([np.zeros((users, 1)), rng.uniform(0, 1, (users, arms - 1)).cumsum(1)], axis=1)
    value = 2 * rng.uniform(size=(users, 1)) * np.sqrt(cost) + 0.3 * rng.normal(size=(users, arms))
    if rng.uniform() < 0.2:
        cost[:, 1:] = cost[:, 1:2]  # equal costs
    if grid:
        cost, value = np.round(2 * cost), np.round(4 * value)
    v, c = torch.tensor(value, dtype=dtype), torch.tensor(cost, dtype=dtype)
    value, cost = v.double().numpy(), c.double().numpy()
    eligible = must = never = None
    allowed = np.ones((users, arms), bool)
    if masks and rng.uniform() < 0.5:
        allowed = rng.uniform(size=(users, arms)) < 0.8
        allowed[:, 0] = True
        eligible = torch.tensor(allowed)
    if masks and rng.uniform() < 0.4:
        never_ = rng.uniform(size=users) < 0.1
        must_ = (rng.uniform(size=users) < 0.1) & ~never_ & allowed[:, 1:].any(1)
        never, must = torch.tensor(never_), torch.tensor(must_)
        allowed = allowed.copy()
        allowed[never_, 1:] = False
        allowed[must_, 0] = False
    # What the constraints are drawn around: a policy at a random price, a few users at random.
    score = np.where(allowed, value - rng.exponential(0.5) * cost, -np.inf)
    score = np.where(allowed & (rng.uniform(size=(users, 1)) < 0.1), rng.normal(size=(users, arms)), score)
    chosen = score.argmax(1)
    constraints = [_constraint(rng, n, value, cost, chosen, room, dtype) for n in range(count)]
    key = torch.tensor(rng.permutation(10 * users)[:users])
    return ConstrainedProblem(v, c, tuple(constraints), eligible, must, never, key)


def heavy_problem(seed: int, users: int) -> ConstrainedProblem:
    """Ten constraints on Pareto(1.2) spend: a few users make up much of every total."""
    g = torch.Generator().manual_seed(seed)
    spend = (1 - torch.rand(users, 1, generator=g, dtype=torch.float64)).pow(-1 / 1.2)
    dose = torch.arange(5)[None] / 4
    response = 0.3 * torch.rand(users, 1, generator=g) * (1 - torch.exp(-2 * dose))
    value, cost = spend * (response + 0.01 * torch.randn(users, 5, generator=g)), 0.1 * spend * dose
    full = cost[:, -1]
    constraints = [
        budget("all", 0.25 * float(full.sum())),
        most_users("largest", [4], 0.15 * users),
        least_users("smallest", [1], 0.05 * users),
    ]
    for part in range(7):
        inside = torch.rand(users, generator=g) < 0.3
        constraints.append(budget(f"part {part}", 0.2 * float(full[inside].sum()), inside))
    return ConstrainedProblem(value, cost, constraints)


def moved(problem: ConstrainedProblem, order: Tensor) -> ConstrainedProblem:
    """The same problem with its rows in another order; the keys go with them."""
    eligible, must, never, key = (
        None if x is None else x[order]
        for x in (problem.eligible, problem.must_treat, problem.never_treat, problem.key)
    )
    limits = []
    for c in problem.constraints:
        usage = c.usage[order] if isinstance(c.usage, Tensor) and c.usage.dim() == 2 else c.usage
        limits.append(replace(c, users=None if c.users is None else c.users[order], usage=usage))
    key = order if key is None else key
    return ConstrainedProblem(problem.value[order], problem.cost[order], limits, eligible, must, never, key)


def _constraint(
    rng: np.random.Generator,
    number: int,
    value: Array,
    cost: Array,
    chosen: NDArray[np.int64],
    room: float | None,
    dtype: torch.dtype,
) -> Constraint:
    users, arms = value.shape
    row = np.arange(users)
    kind = int(rng.integers(9))
    some = torch.tensor(rng.uniform(size=users) < 0.6) if rng.uniform() < 0.5 else None
    inside = np.ones(users, bool) if some is None else some.numpy()
    group = torch.tensor(rng.integers(-1, 3, users))
    arm = sorted(set(rng.integers(1, arms, 2).tolist()))
    on = np.isin(chosen, arm)

    def spare(size: float = 1.0) -> float:
        if room is not None:
            return room * users * size
        return float(rng.choice([0.0, 0.01, 0.3]) * users * size * rng.uniform())

    def by_group(x: Array) -> Tensor:
        return torch.tensor([math.fsum(x[group.numpy() == g]) + spare() / 3 for g in range(3)], dtype=torch.float64)

    spend = cost[row, chosen]
    name = f"c{number}"
    match kind:
        case 0:
            return budget(name, math.fsum(spend[inside]) + spare(), some)
        case 1:
            return budget(name, by_group(spend), group)
        case 2:
            return budget(name, math.fsum(spend[on & inside]) + spare(), some, arm)
        case 3:
            return most_users(name, arm, float(np.sum(on & inside)) + math.floor(spare()), some)
        case 4:
            return least_users(name, arm, float(np.sum(on & inside)) - math.floor(spare()), some)
        case 5:
            return most_users(name, arm, by_group(on.astype(float)), group)
        case 6:
            gain, extra = value[row, chosen] - value[:, 0], cost[row, chosen] - cost[:, 0]
            taken = math.fsum(extra[inside])
            return roi_floor(name, (math.fsum(gain[inside]) - spare()) / taken - 1e-9 if taken else -1.0, some)
        case 7:
            usage = torch.tensor(rng.normal(size=(users, arms)), dtype=dtype)
            return Constraint(name, math.fsum(usage.double().numpy()[row, chosen][inside]) + spare(), usage, some)
        case _:
            usage = torch.tensor(rng.uniform(size=arms), dtype=dtype)
            given = usage.double().numpy()[chosen]
            return Constraint(name, math.fsum(given[inside]) - spare(), usage, some, at_least=True)
