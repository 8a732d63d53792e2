from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.allocation.constrained import (
    ConstrainedAllocation,
    ConstrainedProblem,
    allocate_constrained,
    budget,
)
from lightning_budget.allocation.constrained import solve as module
from lightning_budget.allocation.constrained.infeasible import tighten
from lightning_budget.allocation.constrained.rows import Rows
from tests.allocation.constrained.constrained_reference import (
    Matrix,
    best_by_enumeration,
    keeps_all,
    linear_optimum,
    matrix_of,
    moved,
    random_problem,
    used,
    whole_optimum,
    worth,
)


def flattened(x: dict[str, float | Tensor]) -> list[float]:
    return [u for y in x.values() for u in torch.as_tensor(y, dtype=torch.float64).reshape(-1).tolist()]


def check(problem: ConstrainedProblem, found: ConstrainedAllocation) -> Matrix:
    """All that must hold whatever the problem: recounted with numpy and math.fsum."""
    m = matrix_of(problem)
    assert keeps_all(m, found.assignment)
    assert found.value == worth(m, found.assignment)
    flat = used(m, found.assignment)
    sign = [-1.0 if c.at_least else 1.0 for c in problem.constraints for _ in range(c.groups)]
    usage, slack, price = (flattened(x) for x in (found.usage, found.slack, found.multipliers))
    assert usage == pytest.approx([u * s for u, s in zip(flat, sign, strict=True)], rel=1e-12, abs=1e-12)
    assert min(slack, default=0.0) >= 0
    assert min(price, default=0.0) >= 0
    assert found.gap == found.dual_bound - found.value
    assert found.gap >= -1e-9 * abs(found.dual_bound)
    least = linear_optimum(m)
    assert least is not None
    rows = Rows(problem)
    before = rows.allowed
    tighten(rows)
    if rows.allowed is before:
        assert found.dual_bound >= least - 1e-9 * abs(least)
    return m


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    arms=st.integers(2, 8),
    count=st.integers(1, 10),
    grid=st.booleans(),
    single=st.booleans(),
)
def test_small_problems_against_the_best_whole_allocation(
    seed: int, arms: int, count: int, grid: bool, single: bool
) -> None:
    dtype = torch.float32 if single else torch.float64
    problem = random_problem(seed, 25, arms, count, grid=grid, dtype=dtype)
    found = allocate_constrained(problem)
    m = check(problem, found)
    best = whole_optimum(m)
    assert best is not None
    assert found.dual_bound >= best[0] - 1e-6 * max(1.0, abs(best[0]))
    if arms <= 4 and count <= 4:
        assert found.value >= best[0] - 1e-2 * max(1.0, abs(best[0]))


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5])
def test_the_bound_is_above_every_allocation_of_tiny_problems(seed: int) -> None:
    problem = random_problem(seed + 69, 6, 3 + seed % 3, 7, room=0.0, grid=seed % 4 == 3)
    best = best_by_enumeration(matrix_of(problem))
    found = allocate_constrained(problem)
    assert found.dual_bound >= best - 1e-9 * abs(best)
    assert found.value <= best + 1e-12 * abs(best)


@pytest.mark.parametrize("seed", range(6))
def test_within_a_thousandth_of_the_linear_bound(seed: int) -> None:
    problem = random_problem(seed + 40, 700, 2 + seed, 1 + seed, room=0.02, grid=seed == 5)
    found = allocate_constrained(problem)
    m = check(problem, found)
    least = linear_optimum(m)
    assert least is not None
    assert found.value >= least - 1e-3 * abs(least)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_problems_of_every_kind(seed: int) -> None:
    users, arms, count = (200, 500, 1500)[seed % 3], 2 + seed % 7, 1 + seed % 10
    dtype = torch.float32 if seed % 2 else torch.float64
    problem = random_problem(9000 + seed, users, arms, count, grid=seed % 5 == 0, dtype=dtype)
    found = allocate_constrained(problem)
    m = check(problem, found)
    least = linear_optimum(m)
    assert least is not None
    if found.value < least - 1e-3 * abs(least):
        best = whole_optimum(m, 20.0)
        assert best is not None
        assert found.value >= best[0] - 1.5e-3 * abs(least)


def test_no_constraint_gives_everyone_the_best_that_is_allowed() -> None:
    problem = replace(random_problem(6, 50, 4, 1), constraints=())
    found = allocate_constrained(problem)
    allowed = problem.allowed()
    assert allowed is not None
    assert found.assignment.tolist() == problem.value.masked_fill(~allowed, -math.inf).argmax(1).tolist()
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert found.multipliers == {}


def test_the_certificate_is_plain_and_in_full_precision() -> None:
    problem = random_problem(3, 100, 3, 4, room=0.02)
    found = allocate_constrained(problem)
    report = json.loads(json.dumps(found.certificate()))
    assert report["users"] == 100
    assert report["dual_bound"] - report["value"] == report["gap"] == found.gap
    for c in problem.constraints:
        assert report["slack"][c.name] == min(flattened({"": found.slack[c.name]}))
        assert report["multipliers"][c.name] == max(flattened({"": found.multipliers[c.name]}))


def test_zero_limits_leave_control() -> None:
    problem = random_problem(8, 300, 4, 1, masks=False)
    groups = torch.arange(300) % 3
    limit = torch.tensor([0.0, 5.0, 0.0], dtype=torch.float64)
    found = allocate_constrained(replace(problem, constraints=(budget("segment", limit, groups),)))
    spent = problem.cost.gather(1, found.assignment[:, None])[:, 0]
    assert float(spent[groups != 1].sum()) == 0.0
    assert 4.0 < float(spent[groups == 1].sum()) <= 5.0


@pytest.mark.parametrize(("users", "grid"), [(300, False), (300, True), (40_000, True)])
def test_the_order_of_rows_does_not_matter(users: int, grid: bool) -> None:
    problem = random_problem(21, users, 4, 3, room=0.02, grid=grid)
    order = torch.randperm(users, generator=torch.Generator().manual_seed(0))
    one, two = allocate_constrained(problem), allocate_constrained(moved(problem, order))
    assert torch.equal(one.assignment[order], two.assignment)
    assert one.value == two.value
    assert flattened(one.multipliers) == flattened(two.multipliers)


def test_the_widened_repair_holds_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 400, 4, 3, room=0.02)
    rows = Rows(problem)
    tighten(rows)
    solved = module.solve_dual(rows)
    assert len(module._widened(rows, solved).open) == 400
    monkeypatch.setattr(module, "_WIDEST", 50 * 4 * 4)
    wide = module._widened(rows, solved)
    assert 40 <= len(wide.open) <= 50
    assert wide.treatment.tolist() == solved.last.treatment.tolist()
