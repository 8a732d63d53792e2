"""Narrowing down finds what trying every breakpoint finds: compiled and plain, any layout, order, guess and miss."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.allocation import (
    allocate,
    compiled,
    dual,
    efficient_frontier,
    fill,
    policy_treatment,
    sample,
    search,
    settled_torch,
    solve_multipliers,
)
from lightning_budget.allocation.order import mixed
from lightning_budget.errors import InputError
from tests.allocation.cases import PROBLEMS, Make, plain
from tests.allocation.reference import allocate_by_loops, budget_between, random_problem, recount

USERS = 160
"""As many as loops can take."""

SHARES = (0.0, 1e-4, 0.02, 0.3, 0.7, 0.999, 1.0, 1.5)
"""From the cheapest feasible spend, by the free optimum's, to more than can be spent."""


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute, with a few hundred users made many and pieces that end in the middle of something."""
    monkeypatch.setenv(compiled.SWITCH, "1" if request.param == "compiled" else "0")
    monkeypatch.setattr(search, "FINISH_USERS", 50)
    monkeypatch.setattr(sample, "SAMPLE_USERS", 128)
    monkeypatch.setattr(sample, "_RUN", 8)
    monkeypatch.setattr(settled_torch, "PIECE", 97)
    return request.param


def keys_of(users: int) -> Tensor:
    return 7 * torch.arange(users).flip(0) + 3


@cache
def by_loops(make: Make, share: float) -> tuple[float, float, list[int]] | None:
    """Budget, multiplier and arms for the first users of a problem; none where the share is a negative budget."""
    value, cost = (x[:USERS] for x in make())
    budget = max(budget_between(cost, value, share), 1e-9)
    if budget < recount(cost, cost.argmin(1)):
        return None
    return budget, *allocate_by_loops(value, cost, budget, mixed(keys_of(len(value))).tolist())


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("share", SHARES)
def test_equals_trying_every_breakpoint(path: str, make: Make, share: float) -> None:
    value, cost = (x[:USERS] for x in make())
    expected = by_loops(make, share)
    if expected is None:
        pytest.skip("negative costs: the share is a negative budget")
    budget, multiplier, arm = expected
    found = allocate(value, cost, budget, key=keys_of(len(value)))
    assert found.multiplier == multiplier
    assert found.assignment.tolist() == arm
    assert found.spend == recount(cost, torch.tensor(arm)) <= budget
    assert found.value == recount(value, torch.tensor(arm))
    per_user = dual.critical_multipliers(value, cost, [budget])
    assert per_user == [multiplier]


@pytest.mark.parametrize("make", PROBLEMS)
def test_several_budgets_to_the_last_bit(path: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the exact spend of a breakpoint that breakpoint fits, one float less and it does not."""
    value, cost = make()
    slope = efficient_frontier(value, cost).slope
    exact = [recount(cost, policy_treatment(value, cost, m)) for m in slope[:: len(slope) // 7]]
    totals = [t for spend in exact for t in (spend, math.nextafter(spend, -math.inf))][1:]
    totals = [t for t in totals if t >= recount(cost, cost.argmin(1))]
    with monkeypatch.context() as patch:
        patch.setattr(search, "FINISH_USERS", 10**6)
        expected = dual.critical_multipliers(value, cost, totals)
    assert dual.critical_multipliers(value, cost, totals) == expected
    assert [dual.critical_multipliers(value, cost, [t])[0] for t in totals] == expected
    off = [(2 * m + 1, 3 * m + 1) if i % 2 else (0.1 * m, 0.2 * m) for i, m in enumerate(expected)]
    assert dual.critical_multipliers(value, cost, totals, off) == expected


@pytest.mark.parametrize("make", PROBLEMS)
def test_a_wrong_guess_costs_time_only(path: str, make: Make) -> None:
    value, cost = make()
    budget = max(budget_between(cost, value, 0.4), 1e-3)
    cold = allocate(value, cost, budget)
    for guess in (0.0, 0.5, 0.999, 1.0, 1.001, 3.0, 1e6):
        warm = allocate(value, cost, budget, multiplier=guess * cold.multiplier)
        assert torch.equal(warm.assignment, cold.assignment), guess
        assert warm.certificate() == cold.certificate(), guess


@pytest.mark.parametrize("make", PROBLEMS)
def test_layout_order_and_partition_do_not_matter(path: str, make: Make) -> None:
    value, cost = make()
    users = len(value)
    budget = max(budget_between(cost, value, 0.3), 1e-3)
    key = keys_of(users)
    first = allocate(value, cost, budget, key=key)
    shuffle = torch.randperm(users, generator=torch.Generator().manual_seed(1))
    value_by_arm, cost_by_arm = (x[shuffle].T.contiguous().T for x in (value, cost))
    wide = [torch.zeros(users, 2 * x.shape[1] + 1, dtype=x.dtype) for x in (value, cost)]
    for room, x in zip(wide, (value, cost), strict=True):
        room[:, 1::2] = x
    again = allocate(value_by_arm, cost_by_arm, budget, key=key[shuffle])
    spread = allocate(wide[0][:, 1::2], cost.numpy(), budget, key=key.numpy())
    assert torch.equal(first.assignment[shuffle], again.assignment)
    assert torch.equal(first.assignment, spread.assignment)
    assert first.certificate() == again.certificate() == spread.certificate()


@pytest.mark.parametrize("patience", [1, 3, 60])
def test_an_impatient_fill_does_not_depend_on_what_is_in_sight(
    path: str, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "PATIENCE", patience)
    value, cost = plain()
    budget = budget_between(cost, value, 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(search, "FINISH_USERS", 10**6)
        everything = allocate(value, cost, budget)
    # Some guesses end just below the multiplier, where too few steps are in sight.
    guesses = [None, 3.0, *(everything.multiplier * x for x in (1.0, 1.009, 1.0099))]
    found = [allocate(value, cost, budget, multiplier=m) for m in guesses]
    assert all(torch.equal(f.assignment, everything.assignment) for f in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["first", "last", "both"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_always_found(path: str, dtype: torch.dtype, where: str, bad: float) -> None:
    for name in ("value", "cost"):
        value, cost = (x.to(dtype) for x in random_problem(1, 700, 5))
        x = value if name == "value" else cost
        if where != "last":
            x[0, 0] = bad
        if where != "first":
            x[-1, -1] = bad
        with pytest.raises(InputError, match=rf"{name}\[{'699, 4' if where == 'last' else '0, 0'}\] is"):
            allocate(value, cost, 10.0, multiplier=0.5)
        with pytest.raises(InputError, match=rf"{name}\["):
            solve_multipliers(value, cost, torch.tensor([0.1, 0.2]))


def test_an_infeasible_budget_is_told(path: str) -> None:
    value, cost = random_problem(2, 400, 4)
    with pytest.raises(InputError, match=r"at least 40\d\.\d*, the least feasible spend"):
        allocate(value, cost + 1.01, 400.0)
    with pytest.raises(InputError, match="the least feasible spend"):
        solve_multipliers(value, cost + 1.01, torch.tensor([3.0, 1.0]))


def check_compiled_equals_torch(seed: int, arms: int, grid: bool, single: bool, share: float) -> None:
    value, cost = random_problem(seed, 300, arms, grid)
    cost = cost - (0.3 if seed % 3 == 0 else 0.0)
    if single:
        value, cost = value.float(), cost.float()
    budget = max(budget_between(cost, value, share), 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "FINISH_USERS", 40)
        fast = allocate(value, cost, budget)
        patch.setenv(compiled.SWITCH, "0")
        slow = allocate(value, cost, budget)
    assert torch.equal(fast.assignment, slow.assignment)
    assert fast.certificate() == slow.certificate()


# Every number of arms up to eight is compiled for itself, which takes seconds.
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 5, 9, 64]), st.booleans(), st.booleans(), st.floats(0, 1.2))
def test_compiled_equals_torch(seed: int, arms: int, grid: bool, single: bool, share: float) -> None:
    check_compiled_equals_torch(seed, arms, grid, single, share)


@pytest.mark.slow
@pytest.mark.parametrize("arms", range(1, 20))
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.floats(0, 1.2))
def test_compiled_equals_torch_for_every_number_of_arms(
    arms: int, seed: int, grid: bool, single: bool, share: float
) -> None:
    check_compiled_equals_torch(seed, arms, grid, single, share)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_single(path: str, dtype: torch.dtype) -> None:
    value, cost = (x.to(dtype) for x in random_problem(3, 900, 4))
    half, single = allocate(value, cost, 150.0), allocate(value.float(), cost.float(), 150.0)
    assert torch.equal(half.assignment, single.assignment)
    assert half.certificate() == single.certificate()
    budgets = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert torch.equal(solve_multipliers(value, cost, budgets), solve_multipliers(value.float(), cost.float(), budgets))


def test_sizes_that_jump_between_blocks(path: str) -> None:
    """Margins follow the sizes of a block: users 1e12 times dearer than those before them are judged by their own."""
    value, cost = random_problem(5, 4000, 4)
    scale = torch.where(torch.arange(4000) % 1700 < 600, 1e-6, 1e6)[:, None].double()
    value, cost = (value * scale).float(), (cost * scale).float()
    budget = budget_between(cost, value, 0.4)
    found = allocate(value, cost, budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "FINISH_USERS", 10**6)
        expected = allocate(value, cost, budget)
    assert torch.equal(found.assignment, expected.assignment)
    assert found.certificate() == expected.certificate()
