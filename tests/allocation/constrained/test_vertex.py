from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_budget.allocation.constrained import ConstrainedProblem, most_users
from lightning_budget.allocation.constrained.newton import follow_path
from lightning_budget.allocation.constrained.rows import Block, Rows
from lightning_budget.allocation.constrained.scale import untied
from lightning_budget.allocation.constrained.smooth import hard_dual
from lightning_budget.allocation.constrained.vertex import Vertex
from tests.allocation.constrained.constrained_reference import linear_optimum, matrix_of, random_problem

SEEDS = range(12)


def block_of(problem: ConstrainedProblem) -> Block:
    """All users, ties broken by what changes the optimum by no more than 1e-7 a user."""
    rows = Rows(problem)
    return untied(rows.block(slice(None)), rows.key)


def shares(vertex: Vertex) -> Tensor:
    """``[K, n]``: how much of each treatment each user gets."""
    found = torch.zeros_like(vertex.score)
    found.scatter_(0, vertex.base[None], 1.0)
    for tie, x in zip(vertex.ties, vertex.share, strict=True):
        if tie.user >= 0:
            found[tie.at, tie.user] += x
            found[vertex.base[tie.user], tie.user] -= x
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_vertex_is_the_linear_optimum_and_its_proof(seed: int) -> None:
    problem = random_problem(seed, 80, 2 + seed % 5, 1 + seed % 6, room=0.02, grid=seed % 3 == 0)
    block = block_of(problem)
    vertex = Vertex(block, torch.ones_like(block.limit))
    steps = vertex.minimise(1000)
    assert 0 <= steps < 1000
    least = linear_optimum(matrix_of(problem))
    assert least is not None
    assert vertex.bound == pytest.approx(least, abs=1e-7 * 80 + 1e-9)
    assert vertex.bound == pytest.approx(hard_dual(block, vertex.price), rel=1e-12)
    # A primal solution of the same value within the limits: neither can be better.
    x = shares(vertex)
    assert float(x.min()) > -1e-6
    assert float((block.value.nan_to_num(neginf=0.0) * x).sum()) == pytest.approx(vertex.bound, rel=1e-7)
    assert bool((block.used((block.usage * x).sum(dim=1)) <= block.limit + 1e-6).all())
    assert len(vertex.split()) <= len(block.limit)
    assert set(vertex.split()) == set(((x > 1e-6) & (x < 1 - 1e-6)).any(dim=0).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_held_user_is_a_user_with_one_treatment(seed: int) -> None:
    problem = random_problem(seed + 30, 40, 3, 4, room=0.01, masks=False)
    block = block_of(problem)
    root = Vertex(block, torch.ones_like(block.limit))
    root.minimise(1000)
    before = root.bound
    user = root.split()[0] if root.split() else seed
    for arm in range(3):
        held = root.copy().hold(user, arm)
        steps = held.minimise(1000)
        eligible = torch.ones(40, 3, dtype=torch.bool)
        eligible[user] = torch.arange(3) == arm
        least = linear_optimum(matrix_of(replace(problem, eligible=eligible)))
        assert (least is None) == (steps < 0)
        if least is not None:
            assert held.bound == pytest.approx(least, abs=1e-5)
            assert int(held.rounded()[user]) == arm
    assert root.bound == before


@pytest.mark.parametrize("seed", range(6))
def test_bounds_of_the_multipliers_are_kept(seed: int) -> None:
    block = block_of(random_problem(seed, 80, 4, 4, room=0.02))
    free = Vertex(block, torch.ones_like(block.limit))
    free.minimise(1000)
    upper = 0.5 * free.price + 1e-3
    held = Vertex(block, 0.5 * upper, upper)
    assert 0 <= held.minimise(1000) < 1000
    assert bool((held.price >= 0).all())
    assert bool((held.price <= upper).all())
    path = follow_path(block, 0.5 * upper, 1.0, 1e-9, upper)
    assert held.bound == pytest.approx(hard_dual(block, path.multiplier), rel=1e-6)
    assert held.bound > free.bound


def test_it_stops_where_the_bound_is_low_enough() -> None:
    block = block_of(random_problem(3, 200, 4, 6, room=0.02))
    far = torch.full_like(block.limit, 5.0)
    vertex, early = Vertex(block, far), Vertex(block, far)
    full, some = vertex.minimise(1000), early.minimise(1000, 1.05 * vertex.bound)
    assert 0 < some < full
    assert vertex.bound < early.bound <= 1.05 * vertex.bound
    assert early.split() == []
    assert early.minimise(1000) > 0
    assert early.bound == pytest.approx(vertex.bound, rel=1e-9)


def test_half_a_place_is_half_a_user() -> None:
    """Values 5, 3, 2 for one and a half places: 5 + 3/2, at a price of 3 a place."""
    value = torch.tensor([[0.0, 5.0], [0.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    rows = Rows(ConstrainedProblem(value, torch.ones_like(value), [most_users("places", [1], 1.5)]))
    vertex = Vertex(rows.block(slice(None)), torch.zeros(1, dtype=torch.float64))
    assert vertex.minimise(10) < 10
    assert vertex.split() == [1]
    assert float(vertex.price) == pytest.approx(3.0)
    assert vertex.bound == pytest.approx(6.5)
    assert math.isclose(sum(shares(vertex)[1].tolist()), 1.5)
