"""The frontier against a hull drawn point by point in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.allocation import chunks, efficient_frontier
from tests.allocation.reference import random_problem


def hull(v: list[float], c: list[float]) -> list[int]:
    """Arms of one user's frontier: exact fractions, lowest index of duplicates."""
    pv, pc = [Fraction(x) for x in v], [Fraction(x) for x in c]
    at = min(range(len(v)), key=lambda j: (pc[j], -pv[j], j))
    path = [at]
    while up := [j for j in range(len(v)) if pv[j] > pv[at] and pc[j] > pc[at]]:
        at = min(up, key=lambda j: (-(pv[j] - pv[at]) / (pc[j] - pc[at]), -pc[j], j))
        path.append(at)
    return path


def paths(value: Tensor, cost: Tensor) -> list[list[int]]:
    f = efficient_frontier(value, cost)
    found = [[arm] for arm in f.cheapest.tolist()]
    for user, arm, previous in zip(f.user.tolist(), f.arm.tolist(), f.previous.tolist(), strict=True):
        assert found[user][-1] == previous
        found[user].append(arm)
    return found


grids = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.lists(st.tuples(st.integers(-4, 6), st.integers(-3, 5)), min_size=k, max_size=k), min_size=1, max_size=5
    )
)


@settings(max_examples=150, deadline=None)
@given(grids)
def test_equals_the_exact_hull_with_ties_and_duplicates(rows: list[list[tuple[int, int]]]) -> None:
    points = torch.tensor(rows, dtype=torch.float64)
    value, cost = points[..., 0], points[..., 1]
    assert paths(value, cost) == [hull(v, c) for v, c in zip(value.tolist(), cost.tolist(), strict=True)]


@pytest.mark.parametrize("arms", [1, 2, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_exact_hull_on_random_arms(arms: int, dtype: torch.dtype) -> None:
    value, cost = (x.to(dtype) for x in random_problem(arms, 200, arms))
    assert paths(value, cost) == [hull(v, c) for v, c in zip(value.tolist(), cost.tolist(), strict=True)]


def test_slopes_descend_and_ties_keep_user_order() -> None:
    value, cost = random_problem(3, 500, 6, grid=True)
    f = efficient_frontier(value, cost)
    assert (f.slope > 0).all()
    assert (f.slope.diff() <= 0).all()
    tied = f.slope.diff() == 0
    assert tied.any()
    assert (f.user.diff()[tied] > 0).all(), "within one user slopes are distinct, so ties are between users in order"
    gain = value[f.user, f.arm] - value[f.user, f.previous]
    assert torch.equal(f.slope, gain / (cost[f.user, f.arm] - cost[f.user, f.previous]))


def test_does_not_depend_on_the_size_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    value, cost = random_problem(4, 333, 5)
    whole = efficient_frontier(value, cost)
    monkeypatch.setattr(chunks, "CPU_USERS", 7)
    pieces = efficient_frontier(value, cost)
    for name in ("cheapest", "user", "arm", "previous", "slope"):
        assert torch.equal(getattr(whole, name), getattr(pieces, name))


def test_overflowing_slope_stays_finite() -> None:
    f = efficient_frontier(
        torch.tensor([[0.0, 1e300]], dtype=torch.float64), torch.tensor([[0.0, 1e-300]], dtype=torch.float64)
    )
    assert torch.isfinite(f.slope).all()
