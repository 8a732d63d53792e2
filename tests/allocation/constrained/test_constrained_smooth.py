from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_budget.allocation.constrained.newton import follow_path
from lightning_budget.allocation.constrained.rows import Block, Rows
from lightning_budget.allocation.constrained.smooth import hard_dual, smooth_dual
from tests.allocation.constrained.constrained_reference import linear_optimum, matrix_of, random_problem

SEEDS = range(8)


def block_of(seed: int, users: int = 60) -> Block:
    return Rows(random_problem(seed, users, 4, 5)).block(slice(None))


def price_of(block: Block, seed: int) -> Tensor:
    return torch.rand(len(block.limit), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_against_differences(seed: int) -> None:
    block, tau, h = block_of(seed), 0.3, 1e-5
    price = price_of(block, seed)
    for p, step in enumerate(torch.eye(len(price), dtype=torch.float64) * h):
        difference = smooth_dual(block, price + step, tau).value - smooth_dual(block, price - step, tau).value
        assert float(smooth_dual(block, price, tau).gradient[p]) == pytest.approx(difference / (2 * h), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_newton_solves_with_the_matrix_of_second_differences(seed: int) -> None:
    block, tau, h = block_of(seed), 0.3, 1e-5
    price = price_of(block, seed)
    columns = [
        (smooth_dual(block, price + s, tau).gradient - smooth_dual(block, price - s, tau).gradient) / (2 * h)
        for s in torch.eye(len(price), dtype=torch.float64) * h
    ]
    ridge, right = 0.5 + price, price_of(block, seed + 100)
    expected = torch.linalg.solve(torch.stack(columns) + torch.diag(ridge), right)
    torch.testing.assert_close(smooth_dual(block, price, tau).newton(right, ridge), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_smoothing_adds_at_most_temperature_times_log_arms(seed: int) -> None:
    block = block_of(seed)
    price = price_of(block, seed)
    for tau in (1.0, 1e-2, 1e-6):
        excess = smooth_dual(block, price, tau).value - hard_dual(block, price)
        assert -1e-9 <= excess <= tau * 60 * torch.log(torch.tensor(4.0)) + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_path_ends_at_the_least_dual(seed: int) -> None:
    problem = random_problem(seed, 80, 4, 4, room=0.02)
    block = Rows(problem).block(slice(None))
    path = follow_path(block, torch.ones_like(block.limit), 1.0, 1e-9, 1e4)
    least = linear_optimum(matrix_of(problem))
    assert least is not None
    assert hard_dual(block, path.multiplier) == pytest.approx(least, rel=1e-6)


def test_the_path_stays_within_its_bounds() -> None:
    problem = random_problem(3, 80, 4, 4, room=0.02)
    block = Rows(problem).block(slice(None))
    free = follow_path(block, torch.ones_like(block.limit), 1.0, 1e-9, 1e4).multiplier
    assert float(free.max()) > 0.05
    upper = 0.5 * free + 1e-3
    bounded = follow_path(block, 0.5 * upper, 1.0, 1e-9, upper)
    assert bool((bounded.multiplier >= 0).all())
    assert bool((bounded.multiplier <= upper).all())
    # A box changes nothing where it holds the least point.
    low = (free - 0.1).clamp(min=0)
    shifted = replace(block, value=block.scores(low))
    boxed = follow_path(shifted, (free - low) * 0.5 + 0.02, 1e-2, 1e-9, torch.full_like(free, 0.3))
    assert hard_dual(block, boxed.multiplier + low) == pytest.approx(hard_dual(block, free), rel=1e-6)
