"""Multipliers and the served policy against loops, HiGHS and themselves in other orders."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_budget.allocation import PricePolicy, dual, dual_value, policy_treatment, solve_multipliers
from lightning_budget.errors import InputError
from tests.allocation.reference import (
    budget_between,
    highs,
    multiplier_by_fractions,
    policy_by_loop,
    random_problem,
    recount,
)
from tests.allocation.reference import given as outcome
from tests.problems import SolvedProblem, solved_problems

tables = st.integers(1, 5).flatmap(
    lambda k: st.lists(
        st.lists(st.tuples(st.integers(-4, 8), st.integers(-3, 6)), min_size=k, max_size=k), min_size=1, max_size=6
    )
)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(0, 32))
def test_policy_equals_the_loop(rows: list[list[tuple[int, int]]], quarters: int) -> None:
    points = torch.tensor(rows, dtype=torch.float32)
    value, cost, price = points[..., 0], points[..., 1], quarters / 4
    expected = policy_by_loop(value, cost, price)
    assert torch.equal(policy_treatment(value, cost, price), expected)
    assert torch.equal(PricePolicy(price)(value, cost), expected)


def test_policy_has_the_best_score_on_random_arms() -> None:
    value, cost = random_problem(0, 5000, 5)
    for price in (0.0, 0.3, 1.7, 20.0):
        score = value - price * cost
        assert torch.equal(policy_treatment(value, cost, torch.tensor(price)), score.argmax(1))
    assert torch.equal(policy_treatment(value, cost, math.inf), cost.argmin(1))


@settings(max_examples=150, deadline=None)
@given(tables, st.floats(0, 1.2), st.booleans())
def test_multiplier_is_the_smallest_that_fits(rows: list[list[tuple[int, int]]], share: float, whole: bool) -> None:
    points = torch.tensor(rows, dtype=torch.float64)
    value, cost = points[..., 0], points[..., 1]
    budget = budget_between(cost, value, share)
    budget = max(float(math.ceil(budget)) if whole else budget, recount(cost, cost.argmin(1)))
    (found,) = dual.critical_multipliers(value, cost, [budget])
    assert found == multiplier_by_fractions(value, cost, budget)


def test_mean_spend_is_within_every_budget_and_the_next_smaller_float_is_not() -> None:
    value, cost = random_problem(5, 2000, 5)
    budgets = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    multipliers = solve_multipliers(value, cost, budgets)
    assert multipliers.dtype == torch.float64
    assert (multipliers.diff() <= 0).all()
    for b, price in zip(budgets.tolist(), multipliers.tolist(), strict=True):
        assert recount(cost, policy_treatment(value, cost, price)) / 2000 <= b
        if price > 0:
            just_below = math.nextafter(price, 0.0)
            assert recount(cost, policy_treatment(value, cost, just_below)) / 2000 > b


def test_many_budgets_at_once_equal_one_at_a_time() -> None:
    value, cost = random_problem(6, 400, 4)
    budgets = torch.tensor([0.7, 0.05, 0.3])
    together = solve_multipliers(value, cost, budgets)
    assert together.tolist() == [solve_multipliers(value, cost, b).item() for b in budgets]
    assert solve_multipliers(value, cost, budgets[:0]).shape == (0,)


def test_order_of_users_does_not_matter() -> None:
    value, cost = random_problem(7, 400, 4)
    budgets = torch.tensor([0.1, 0.4])
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    assert torch.equal(solve_multipliers(value, cost, budgets), solve_multipliers(value[order], cost[order], budgets))


@pytest.mark.parametrize("users", [3, 49, 1000])
def test_a_mean_that_its_own_product_misses_still_fits(users: int) -> None:
    # (1 / 49) * 49 < 1 in floating point: exactly one user's step fits all the same.
    value = torch.cat([torch.zeros(users, 1), torch.arange(users, 0, -1.0)[:, None]], dim=1).double()
    cost = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(users, 1)
    assert solve_multipliers(value, cost, 1 / users).item() == users - 1


def test_float32_predictions_are_solved_in_float64() -> None:
    value, cost = (x.float() for x in random_problem(9, 1500, 5))
    budgets = torch.tensor([0.2, 0.5], dtype=torch.float64)
    assert torch.equal(
        solve_multipliers(value, cost, budgets), solve_multipliers(value.double(), cost.double(), budgets)
    )


@pytest.mark.parametrize("case", solved_problems(), ids=lambda p: p.name)
def test_closed_form(case: SolvedProblem) -> None:
    found = solve_multipliers(case.value, case.cost, case.budget / len(case.value)).item()
    assert found == pytest.approx(case.multiplier, rel=1e-15)
    assert dual_value(case.value, case.cost, found, case.budget) == pytest.approx(case.relaxed, rel=1e-14)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.3])
def test_dual_value_is_the_linear_optimum(seed: int, share: float) -> None:
    value, cost = random_problem(seed, 40, 2 + 3 * seed, grid=seed == 3)
    budget = budget_between(cost, value, share)
    (price,) = dual.critical_multipliers(value, cost, [budget])
    bound = dual_value(value, cost, price, budget)
    assert bound == pytest.approx(highs(value, cost, budget, integer=False), rel=1e-9, abs=1e-9)
    for other in (0.0, 0.5 * price, 2 * price + 0.1):
        assert dual_value(value, cost, other, budget) >= bound - 1e-12 * abs(bound)


def test_gradients_are_not_tracked() -> None:
    value, cost = random_problem(2, 30, 3)
    assert not solve_multipliers(value.requires_grad_(), cost.requires_grad_(), 0.2).requires_grad


def test_budget_below_the_cheapest_spend_is_refused() -> None:
    value, cost = torch.zeros(4, 2), torch.tensor([[1.0, 2.0]]).repeat(4, 1)
    assert (outcome(cost, policy_treatment(value, cost, 1.0)) == 1).all()
    with pytest.raises(InputError, match=r"at least 4\.0"):
        solve_multipliers(value, cost, torch.tensor([2.0, 0.99]))
    with pytest.raises(InputError, match="finite currency"):
        solve_multipliers(value, cost, torch.tensor([math.nan]))
