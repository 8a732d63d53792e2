"""Whole allocations: closed forms, enumeration, HiGHS, and what must hold for any input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.allocation import (
    allocate,
    efficient_frontier,
    order,
    policy_treatment,
    search,
)
from lightning_budget.errors import InputError
from tests.allocation.reference import (
    best_by_enumeration,
    budget_between,
    highs,
    largest_step,
    random_problem,
    recount,
)
from tests.problems import SolvedProblem, solved_problems

numbers = st.floats(-8, 8, width=32) | st.integers(-3, 5).map(float) | st.sampled_from([0.1, 0.2, 0.3, 1e-9, 1e6])
tables = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(st.tuples(numbers, numbers), min_size=k, max_size=k), min_size=1, max_size=9)
)


@pytest.mark.parametrize("case", solved_problems(), ids=lambda p: p.name)
def test_closed_form(case: SolvedProblem) -> None:
    found = allocate(case.value, case.cost, case.budget)
    assert found.multiplier == pytest.approx(case.multiplier, rel=1e-15)
    assert found.dual_bound == pytest.approx(case.relaxed, rel=1e-14)
    assert found.value <= case.best + 1e-12
    assert found.value >= case.relaxed - largest_step(case.value, case.cost)
    assert best_by_enumeration(case.value, case.cost, case.budget) == pytest.approx(case.best)


@settings(max_examples=300, deadline=None)
@given(tables, st.floats(0, 1.3), st.booleans())
def test_holds_for_any_input(rows: list[list[tuple[float, float]]], share: float, single: bool) -> None:
    points = torch.tensor(rows, dtype=torch.float32 if single else torch.float64)
    value, cost = points[..., 0], points[..., 1]
    budget = budget_between(cost, value, share)
    least = recount(cost, cost.argmin(1))
    budget = max(budget, least, 1e-3)
    found = allocate(value, cost, budget)
    assert found.spend == recount(cost, found.assignment)
    assert found.spend <= budget
    assert found.slack == budget - found.spend >= 0
    assert found.value == recount(value, found.assignment)
    scale = float(value.double().abs().sum()) + found.multiplier * (float(cost.double().abs().sum()) + budget) + 1e-300
    assert found.gap >= -1e-13 * scale
    assert found.gap <= largest_step(value, cost) + 1e-13 * scale
    # Only arms of the frontier are given.
    f = efficient_frontier(value, cost)
    allowed = {(i, a) for i, a in enumerate(f.cheapest.tolist())} | set(
        zip(f.user.tolist(), f.arm.tolist(), strict=True)
    )
    assert set(enumerate(found.assignment.tolist())) <= allowed


@pytest.mark.parametrize("seed", range(12))
def test_enumeration(seed: int) -> None:
    users, arms = [(1, 5), (6, 2), (5, 3), (4, 4)][seed % 4]
    value, cost = random_problem(seed, users, arms, grid=seed >= 8)
    budget = max(budget_between(cost, value, 0.2 + 0.06 * seed), 0.01)
    found, best = allocate(value, cost, budget), best_by_enumeration(value, cost, budget)
    assert found.value <= best + 1e-12
    assert found.dual_bound >= best - 1e-12
    assert best - found.value <= largest_step(value, cost)


@pytest.mark.parametrize(("users", "arms"), [(60, 2), (40, 5), (25, 12)])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_highs(users: int, arms: int, share: float) -> None:
    value, cost = random_problem(users, users, arms)
    budget = budget_between(cost, value, share)
    found = allocate(value, cost, budget)
    relaxed, best = highs(value, cost, budget, integer=False), highs(value, cost, budget, integer=True)
    assert found.dual_bound == pytest.approx(relaxed, rel=1e-9)
    assert found.value <= best * (1 + 1e-9)
    assert relaxed - found.value <= largest_step(value, cost)
    assert best - found.value <= found.gap * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_users_leave_next_to_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FINISH_USERS", 1000)
    value, cost = (x.to(dtype) for x in random_problem(1, 20_000, 5))
    budget = budget_between(cost, value, 0.3)
    found = allocate(value, cost, budget)
    report = found.certificate()
    assert report["users"] == 20_000
    assert report["budget"] == budget
    assert report["relative_gap"] == found.gap / found.dual_bound <= 1e-5
    assert found.spend >= 0.9999 * budget
    plain = policy_treatment(value, cost, found.multiplier)
    assert found.value >= recount(value, plain)
    assert int((found.assignment != plain).sum()) < 200


def test_float32_and_float64_agree() -> None:
    value, cost = (x.float() for x in random_problem(2, 500, 4))
    budget = budget_between(cost, value, 0.5)
    single, double = (allocate(value.to(d), cost.to(d), budget) for d in (torch.float32, torch.float64))
    assert torch.equal(single.assignment, double.assignment)
    assert single.certificate() == double.certificate()


def test_order_of_users_does_not_matter() -> None:
    value, cost = random_problem(3, 300, 4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    budget = budget_between(cost, value, 0.5)
    a, b = (
        allocate(value, cost, budget),
        allocate(value[order], cost[order], budget),
    )
    assert torch.equal(a.assignment[order], b.assignment)
    assert a.certificate() == b.certificate()


def test_budget_exactly_at_the_cheapest_spend() -> None:
    value, cost = random_problem(4, 200, 4)
    cost = cost + 0.1
    least = math.fsum(cost.amin(1).tolist())
    found = allocate(value, cost, least)
    assert found.slack == 0
    assert torch.equal(found.assignment.long(), cost.argmin(1))


def test_budget_beyond_the_free_optimum_is_left_over() -> None:
    value, cost = random_problem(5, 200, 4)
    found = allocate(value, cost, 1e6)
    assert found.multiplier == 0
    assert torch.equal(found.assignment.long(), value.argmax(1))
    assert found.slack == 1e6 - found.spend > 9e5
    assert found.gap == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("price", "budget", "treated"),
    [(1.0, 37.0, 37), (0.1, 2.0, 20), (0.7, 7.0, 10), (0.3, 2.0, 6), (0.1, math.nextafter(10.0, 0.0), 99)],
)
def test_identical_users_share_to_the_last_unit(price: float, budget: float, treated: int) -> None:
    value = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(150, 1)
    cost = torch.tensor([[0.0, price]], dtype=torch.float64).repeat(150, 1)
    found = allocate(value, cost, budget)
    assert int(found.assignment.sum()) == treated
    first = order.mixed(torch.arange(150)).argsort()[:treated]
    assert sorted(found.assignment.nonzero()[:, 0].tolist()) == sorted(first.tolist())


def test_one_arm_and_one_user() -> None:
    only = allocate(torch.tensor([[3.0]]), torch.tensor([[2.0]]), 2.0)
    assert (only.assignment.tolist(), only.value, only.slack, only.multiplier) == ([0], 3.0, 0.0, 0.0)
    one = allocate(torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 3.0]]), 2.0)
    assert (one.assignment.tolist(), one.multiplier, one.gap) == ([1], 0.5, 0.5)


def bad(value: Tensor | None = None, cost: Tensor | None = None, budget: float = 1.0) -> tuple[Tensor, Tensor, float]:
    return torch.zeros(2, 2) if value is None else value, torch.zeros(2, 2) if cost is None else cost, budget


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (bad(value=torch.zeros(4)), r"value has shape \[4\]"),
        (bad(cost=torch.zeros(0, 2)), r"cost has shape \[0, 2\]"),
        (bad(value=torch.zeros(2, 3)), "equal shapes"),
        (bad(cost=torch.zeros(2, 2, dtype=torch.int64)), "floating dtype"),
        (bad(value=torch.tensor([[0.0, 1.0], [math.nan, 0.0]])), r"value\[1, 0\] is nan"),
        (bad(cost=torch.tensor([[0.0, math.inf], [0.0, 0.0]])), r"cost\[0, 1\] is inf"),
        (bad(budget=0.0), "budget=0.0"),
        (bad(budget=-1.0), "budget=-1.0"),
        (bad(budget=math.nan), "budget=nan"),
        (bad(cost=torch.full((2, 2), 0.75)), r"at least 1\.5, the least feasible spend"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: tuple[Tensor, Tensor, float], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        allocate(*arguments)
    assert "\n" not in str(caught.value)
