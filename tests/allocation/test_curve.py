"""The whole curve against one solve a budget, and a curve drawn by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_budget.allocation import allocate, budget_curve
from lightning_budget.errors import InputError
from tests.allocation.reference import budget_between, random_problem, recount


@pytest.mark.parametrize("grid", [False, True])
def test_equals_one_solve_a_budget(grid: bool) -> None:
    value, cost = random_problem(3, 300, 5, grid)
    curve = budget_curve(value, cost)
    budgets = [max(budget_between(cost, value, share), 1e-9) for share in (0.0, 0.03, 0.4, 0.9, 1.0, 1.7)]
    bounds = [allocate(value, cost, b).dual_bound for b in budgets]
    assert curve.at(torch.tensor(budgets, dtype=torch.float64)).tolist() == pytest.approx(bounds, rel=1e-12)


def test_is_concave_from_the_cheapest_to_the_free_optimum() -> None:
    value, cost = random_problem(4, 500, 6)
    curve = budget_curve(value, cost)
    assert (curve.multiplier > 0).all()
    assert (curve.multiplier.diff() <= 0).all()
    assert float(curve.budget[0]) == pytest.approx(recount(cost, cost.argmin(1)))
    assert float(curve.budget[-1]) == pytest.approx(recount(cost, value.argmax(1)))
    assert float(curve.value[-1]) == pytest.approx(recount(value, value.argmax(1)))
    assert torch.allclose(curve.value.diff(), curve.multiplier * curve.budget.diff(), atol=1e-9)


def test_drawn_by_hand() -> None:
    # Steps: 6 for 2, then 1 for 1 of the first user; 4 for 2 of the second, whose other arm is dominated.
    value = torch.tensor([[0.0, 6.0, 7.0], [1.0, 5.0, 0.5]])
    cost = torch.tensor([[0.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    curve = budget_curve(value, cost)
    assert curve.budget.tolist() == [1, 3, 5, 6]
    assert curve.value.tolist() == [1, 7, 11, 12]
    assert curve.multiplier.tolist() == [3, 2, 1]
    assert curve.at(torch.tensor([1.0, 2.0, 4.0, 5.5, 9.0], dtype=torch.float64)).tolist() == [1, 4, 9, 11.5, 12]


def test_nobody_can_step() -> None:
    curve = budget_curve(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    assert curve.at(torch.tensor([1.0, 5.0], dtype=torch.float64)).tolist() == [2, 2]


def test_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"cost\[1, 0\] is nan"):
        budget_curve(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))
