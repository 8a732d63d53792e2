from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_budget.allocation.constrained import ConstrainedProblem, budget, least_users, most_users
from lightning_budget.allocation.constrained import dual as module
from lightning_budget.allocation.constrained.dual import solve_dual
from lightning_budget.allocation.constrained.full_pass import full_pass
from lightning_budget.allocation.constrained.rows import Rows
from tests.allocation.constrained.constrained_reference import (
    heavy_problem,
    linear_optimum,
    matrix_of,
    moved,
    random_problem,
)


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling and open users at a size that HiGHS can check."""
    monkeypatch.setattr(module, "SAMPLE_USERS", 300)
    monkeypatch.setattr(module, "ENOUGH_OPEN", 100)
    monkeypatch.setattr(module, "USERS_PER_GROUP", 64)


def test_bound_of_a_pass_is_the_dual_by_loops() -> None:
    problem = random_problem(5, 50, 4, 6)
    m = matrix_of(problem)
    price = np.random.default_rng(0).uniform(0, 2, len(m.limit))
    score = np.where(m.allowed, m.value - np.einsum("p,pnk->nk", price, m.usage), -np.inf)
    expected = math.fsum([*(price * m.limit), *score.max(1)])
    rows = Rows(problem)
    error = torch.full((len(m.limit),), 0.1, dtype=torch.float64)
    found = full_pass(rows, torch.tensor(price), error, 1.0, 1.0)
    assert found.bound == pytest.approx(expected, rel=1e-12)
    assert found.treatment.tolist() == score.argmax(1).tolist()
    assert 0 < len(found.open) < 50
    # Where nobody settled changes, the model is the dual; elsewhere it is below.
    assert found.least(rows, torch.tensor(price)) == pytest.approx(expected, rel=1e-12)
    other = torch.tensor(price) * 3
    assert found.least(rows, other) <= full_pass(rows, other, error, 1.0, 1.0).bound + 1e-9
    everyone = found.opened(rows, torch.ones(50, dtype=torch.bool))
    assert everyone.least(rows, other) == pytest.approx(full_pass(rows, other, error, 1.0, 1.0).bound, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("small_sample")
def test_few_passes_after_a_sample_reach_the_linear_optimum(seed: int) -> None:
    problem = random_problem(seed, 2500, 4, 3, room=0.02, masks=seed % 2 == 0, grid=seed % 3 == 0)
    solved = solve_dual(Rows(problem))
    least = linear_optimum(matrix_of(problem))
    assert least is not None
    assert solved.last.bound >= least * (1 - 1e-9)
    assert solved.last.bound <= least + 1e-5 * abs(least)
    assert 2 <= solved.passes <= 5
    assert solved.visits > 0


@pytest.mark.usefixtures("small_sample")
def test_ties_of_a_third_of_all_users_do_not_mislead() -> None:
    g = torch.Generator().manual_seed(0)
    dose = torch.arange(5)[None] / 4
    spend = torch.exp(0.5 * torch.randn(4000, 1, generator=g))
    value = spend * 0.3 * torch.rand(4000, 1, generator=g) * (1 - torch.exp(-2 * dose))
    cost, value = (2 * spend * dose).round().double(), (40 * value).round().double()
    full = float(cost[:, -1].sum())
    limits = [budget("all", 0.25 * full), most_users("last", [4], 600.0), least_users("first", [1], 200.0)]
    problem = ConstrainedProblem(value, cost, limits)
    solved = solve_dual(Rows(problem))
    least = linear_optimum(matrix_of(problem))
    assert least is not None
    assert least * (1 - 1e-9) <= solved.last.bound <= least * (1 + 1e-5)
    # Equal users part at a price where some of them are treated: they are neither all open nor all on one side.
    assert len(solved.last.open) < 0.2 * 4000
    spent = float(cost.gather(1, solved.last.treatment[:, None]).sum())
    assert spent == pytest.approx(0.25 * full, rel=0.02)


@pytest.mark.parametrize("users", [500, 2500])
@pytest.mark.usefixtures("small_sample")
def test_open_users_and_multipliers_do_not_depend_on_the_order_of_rows(users: int) -> None:
    problem = random_problem(11, users, 4, 5, room=0.02, grid=True, masks=False)
    order = torch.randperm(users, generator=torch.Generator().manual_seed(0))
    first, second = Rows(problem), Rows(moved(problem, order))
    one, two = solve_dual(first), solve_dual(second)
    # To the last bit: sums over users are taken in the order of the hashes.
    assert one.multiplier.tolist() == two.multiplier.tolist()
    assert first.key[one.last.open].tolist() == second.key[two.last.open].tolist()
    assert len(one.last.open) > 50
    more = torch.arange(users) % 3 == 0
    assert (
        first.key[one.last.opened(first, more).open].tolist()
        == second.key[two.last.opened(second, more[order]).open].tolist()
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.usefixtures("small_sample")
def test_few_passes_suffice_where_a_few_users_make_up_much_of_the_total(seed: int) -> None:
    problem = heavy_problem(seed, 4000)
    solved = solve_dual(Rows(problem))
    least = linear_optimum(matrix_of(problem))
    assert least is not None
    assert least * (1 - 1e-9) <= solved.last.bound <= least * (1 + 1e-5)
    assert solved.passes <= 5


def test_multipliers_are_the_prices_of_the_limits() -> None:
    """Two users of three may be treated; the third one's value is the price of a place."""
    value = torch.tensor([[0.0, 5.0], [0.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    rows = Rows(ConstrainedProblem(value, torch.ones_like(value), [most_users("places", [1], 2.0)]))
    solved = solve_dual(rows)
    assert 2 - 1e-5 <= float(solved.multiplier) <= 3 + 1e-5
    assert solved.last.bound == pytest.approx(8.0, rel=1e-7)
