"""Thousands of small problems against HiGHS, and tiny ones against every allocation there is."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_matrix, eye, kron
from torch import Tensor

from lightning_budget.allocation import allocate
from tests.allocation.reference import budget_between, largest_step, recount

BATCH = 40
Problem = tuple[Tensor, Tensor, float]


def problem(seed: int) -> Problem:
    """Up to eight users with 2 to 64 arms: ties, free, equal, negative costs, dominated arms, budgets past the ends."""
    g = np.random.default_rng(seed)
    users, arms = int(g.integers(1, 9)), int(g.choice([2, 3, 5, 8, 9, 20, 64]))
    kind = g.choice(["smooth", "grid", "free", "equal", "negative"])
    cost = g.random((users, arms)).cumsum(1)
    value = 3 * g.random((users, 1)) * np.sqrt(cost) + 0.5 * g.normal(size=(users, arms))
    if kind == "grid":
        value, cost = np.round(4 * value), np.round(2 * cost)
    if kind == "free":
        cost[:, g.integers(arms)] = 0
    if kind == "equal":
        cost[:] = 1
    if kind == "negative":
        cost -= 1
    v, c = torch.tensor(value), torch.tensor(cost)
    share = float(g.choice([0.0, 1.0, 1.3, g.random()]))
    return v, c, max(budget_between(c, v, share), recount(c, c.argmin(1)), 1e-3)


def relaxed(problems: list[Problem]) -> list[float]:
    """Optima of the linear relaxations by HiGHS, all in one program of independent parts."""

    def rows(matrices: list[Any]) -> Any:
        return csr_matrix(block_diag(matrices))

    v = [value.numpy().ravel() for value, _, _ in problems]
    budgets = rows([cost.numpy().reshape(1, -1) for _, cost, _ in problems])
    one_each = rows([kron(eye(len(value)), np.ones((1, value.shape[1]))) for value, _, _ in problems])
    limits = [budget for _, _, budget in problems]
    everyone = np.ones(one_each.shape[0])
    found = linprog(-np.concatenate(v), budgets, limits, one_each, everyone, bounds=(0, None), method="highs")
    assert found.status == 0, found.message
    parts = np.split(found.x, np.cumsum([len(x) for x in v])[:-1])
    return [float(x @ z) for x, z in zip(v, parts, strict=True)]


def check_batch(first: int) -> None:
    problems = [problem(seed) for seed in range(first, first + BATCH)]
    for (value, cost, budget), optimum in zip(problems, relaxed(problems), strict=True):
        found = allocate(value, cost, budget)
        close = 1e-6 * (1 + float(value.abs().sum()))
        assert found.dual_bound == pytest.approx(optimum, abs=close)
        assert found.value <= optimum + close
        assert optimum - found.value <= largest_step(value, cost) + close
        assert recount(cost, found.assignment) <= budget


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**9))
def test_hundreds_against_highs(first: int) -> None:
    check_batch(first)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100 * BATCH, BATCH))
def test_thousands_against_highs(first: int) -> None:
    check_batch(first)


def best_mixture(points: list[list[tuple[int, int]]], budget: Fraction) -> Fraction:
    """The linear relaxation by brute force: the best mixture of any two of all allocations."""
    spends: dict[int, int] = {}
    for choice in itertools.product(*points):
        spend, worth = sum(c for _, c in choice), sum(v for v, _ in choice)
        spends[spend] = max(worth, spends.get(spend, worth))
    within = [(s, w) for s, w in spends.items() if s <= budget]
    best = Fraction(max(w for _, w in within))
    for (s, w), (t, x) in itertools.product(within, spends.items()):
        if t > budget:
            best = max(best, w + (budget - s) * Fraction(x - w, t - s))
    return best


tables = st.integers(2, 4).flatmap(
    lambda k: st.lists(
        st.lists(st.tuples(st.integers(-4, 9), st.integers(-2, 6)), min_size=k, max_size=k), min_size=1, max_size=4
    )
)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 80))
def test_tiny_problems_against_every_mixture(points: list[list[tuple[int, int]]], quarters: int) -> None:
    table = torch.tensor(points, dtype=torch.float64)
    value, cost = table[..., 0], table[..., 1]
    budget = max(Fraction(quarters, 4), Fraction(recount(cost, cost.argmin(1))))
    if budget <= 0:
        budget = Fraction(1, 4)
    found = allocate(value, cost, float(budget))
    assert found.dual_bound == pytest.approx(float(best_mixture(points, budget)), rel=1e-14, abs=1e-13)
