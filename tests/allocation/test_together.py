"""One curve of the spend gives many multipliers, the same as one by one, at edges of its slots and for any sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_budget.allocation import (
    compiled,
    dual,
    efficient_frontier,
    policy_treatment,
    search,
    solve_multipliers,
)
from lightning_budget.allocation.compiled import together
from lightning_budget.errors import InputError
from tests.allocation.cases import PROBLEMS, Make, plain
from tests.allocation.reference import budget_between, given, random_problem, recount

pytestmark = pytest.mark.skipif(not compiled.installed(), reason="the curve is compiled")


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "1")
    monkeypatch.setattr(search, "FINISH_USERS", 50)


def by_sorting(value: Tensor, cost: Tensor, totals: list[float]) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "FINISH_USERS", 10**6)
        return dual.critical_multipliers(value, cost, totals)


def exact_totals(value: Tensor, cost: Tensor, steps: int, about: float | None = None) -> list[float]:
    """The spend at some breakpoints, or those about a slope, and one float less."""
    slope = efficient_frontier(value, cost).slope
    slope = slope if about is None else slope[(slope / about - 1).abs() < 1e-6]
    exact = [recount(cost, policy_treatment(value, cost, m)) for m in slope[:: len(slope) // steps]]
    totals = [t for spend in exact for t in (spend, math.nextafter(spend, -math.inf))]
    return [t for t in totals if t >= recount(cost, cost.argmin(1))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", PROBLEMS)
def test_to_the_last_bit_wherever_it_answers(make: Make, dtype: torch.dtype) -> None:
    value, cost = (x.to(dtype) for x in make())
    totals = exact_totals(value, cost, 9)
    expected = by_sorting(value, cost, totals)
    wide = [(m / 3, 3 * m) for m in expected]
    found = together.multipliers_together(dual.all_users(value, cost, None), totals, wide)
    assert all(one in (None, m) for one, m in zip(found, expected, strict=True))
    if make is plain:
        assert found == expected
    assert dual.critical_multipliers(value, cost, totals) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["by arm", "by user", "every other column"])
def test_any_layout_and_users_that_end_within_a_block(dtype: torch.dtype, layout: str) -> None:
    value, cost = (x.to(dtype) for x in random_problem(11, 20_011, 5))
    budgets = torch.linspace(0.02, 0.4, 5, dtype=torch.float64)
    expected = [solve_multipliers(value, cost, b).item() for b in budgets]
    if layout == "by arm":
        value, cost = (x.T.contiguous().T for x in (value, cost))
    if layout == "every other column":
        value, cost = (torch.stack([x, x + 7], 2).flatten(1)[:, ::2] for x in (value, cost))
    users = dual.all_users(value, cost, None)
    totals = [20_011 * b for b in budgets.tolist()]
    brackets = together.brackets_together(users.value, users.cost, budgets.tolist())
    assert all(low <= m <= high < 1.5 * low for (low, high), m in zip(brackets, expected, strict=True))
    assert together.multipliers_together(users, totals, brackets) == expected


@pytest.mark.parametrize("arms", [2, 3, 5, 7, 8])
def test_any_number_of_arms_as_in_plain_torch(arms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is made for a few numbers of arms; below them the last arm comes again. No order of the arms helps."""
    g = torch.Generator().manual_seed(arms)
    value, cost = (x.float() for x in random_problem(20 + arms, 2500, arms))
    order = torch.rand(2500, arms, generator=g).argsort(1)
    value, cost = value.gather(1, order), (cost + torch.rand(2500, 1, generator=g)).gather(1, order)
    ends = [recount(cost, cost.argmin(1)), recount(cost, value.argmax(1))]
    budgets = torch.linspace(*ends, 62, dtype=torch.float64)[1:-1] / 2500
    users = dual.all_users(value, cost, None)
    brackets = together.brackets_together(users.value, users.cost, budgets.tolist())
    found = together.multipliers_together(users, [2500 * b for b in budgets.tolist()], brackets)
    assert sum(one is not None for one in found) > 50
    compiled_too = solve_multipliers(value, cost, budgets).tolist()
    monkeypatch.setenv(compiled.SWITCH, "0")
    expected = solve_multipliers(value, cost, budgets).tolist()
    assert compiled_too == expected
    assert all(one in (None, m) for one, m in zip(found, expected, strict=True))
    assert len(set(expected)) == 60


@pytest.mark.parametrize("arms", [2, 3, 5, 7, 8])
def test_hardly_anyone_is_odd(arms: int) -> None:
    """Neither for the last arm that comes again, nor for arms equal to the cheapest one."""
    from lightning_budget.allocation.compiled.blocks import PITCH
    from lightning_budget.allocation.compiled.intervals import WRITTEN, intervals

    value, cost = (x.float() for x in random_problem(30 + arms, 1024, arms))
    none = torch.rand(1024, arms, generator=torch.Generator().manual_seed(arms)) < 0.2
    v, c = (torch.where(none, x[:, :1], x).T.contiguous().numpy().ravel() for x in (value, cost))
    most = min(n for n in WRITTEN if n >= arms)
    below, last, mask = (np.int32(x) for x in (0x3E000000, 0x41000000, 0x7FFFFFFF))
    ends, steps, top = np.empty(most * PITCH, np.int32), np.zeros(PITCH, np.uint8), np.zeros(PITCH, np.float32)
    odd = np.zeros(PITCH, np.int8)
    intervals(v, c, 0, 1024, 1024, arms, (0,) * most, 1024, below, last, mask, mask, ends, steps, odd, top)
    assert odd.sum() < 10
    slope = efficient_frontier(*(torch.from_numpy(x.reshape(arms, 1024).T) for x in (v, c))).slope
    marked = int(np.unpackbits(steps).sum())
    assert abs(marked - int(((slope > 0.125) & (slope < 8)).sum())) < 10


@pytest.mark.parametrize("arms", [3, 5, 8])
@pytest.mark.parametrize("off", [0.0, 1e-6])
def test_arms_of_a_user_on_one_line(arms: int, off: float) -> None:
    """Their slopes differ by rounding alone, or by a few floats, and no order of the arms helps."""
    g = torch.Generator().manual_seed(arms)
    cost = torch.rand(3000, arms, generator=g)
    cost[:, 0] = 0
    value = (0.1 + torch.rand(3000, 1, generator=g)) * cost * (1 + off * torch.randn(3000, arms, generator=g))
    shuffled = torch.rand(3000, arms, generator=g).argsort(1)
    value, cost = value.gather(1, shuffled), cost.gather(1, shuffled)
    totals = exact_totals(value, cost, 12)
    expected = by_sorting(value, cost, totals)
    brackets = [(m / 1.1, 1.1 * m) for m in expected]
    found = together.multipliers_together(dual.all_users(value, cost, None), totals, brackets)
    assert all(one in (None, m) for one, m in zip(found, expected, strict=True))
    assert sum(one is not None for one in found) > 0.8 * len(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("off", [-2, 0, 1])
def test_slopes_within_rounding_of_an_edge(dtype: torch.dtype, off: int) -> None:
    """Half the users step at slopes that differ in their last bits, and an edge of a slot is one of them, or beside."""
    g = torch.Generator().manual_seed(0)
    near = torch.rand(1200, generator=g) < 0.5
    price = (0.5 + torch.rand(1200, generator=g, dtype=torch.float64)).to(dtype)
    slope = torch.where(near, 1.7, 1.7 + 1e-4 * torch.randn(1200, generator=g, dtype=torch.float64))
    step = slope * price.double()
    value = torch.stack([torch.zeros(1200), step, 1.9 * step, 0.4 * step], 1).to(dtype)
    cost = torch.stack([torch.zeros(1200), price, 2 * price, 0.5 * price], 1).to(dtype)
    totals = exact_totals(value, cost, 8, about=1.7)
    expected = by_sorting(value, cost, totals)
    size = value.element_size()
    bits = np.dtype(f"i{size}")
    edge = int(np.array([1.7], f"f{size}").view(bits)[0]) + off
    low, high = (float(np.array([edge + i * 512], bits).view(f"f{size}")[0]) for i in (-12, 12))
    slots = together.Slots.over(low, high, size)
    assert slots.shift == 9
    assert edge in [slots.edge_bits(t) for t in range(slots.count)]
    found = together.multipliers_together(dual.all_users(value, cost, None), totals, [(low, high)] * len(totals))
    assert all(one in (None, m) for one, m in zip(found, expected, strict=True))
    assert len([one for one in found if one is not None]) > 4


@pytest.mark.parametrize("spread", [0, 10, 30, 60])
def test_sums_of_equal_and_of_unlike_sizes_do_not_round(spread: int) -> None:
    """Many users in one slot at the largest integers, and costs of which those integers see nothing."""
    g = torch.Generator().manual_seed(1)
    size = torch.where(torch.arange(10_000) % 997 == 0, 1.9999, 2.0**-spread * torch.rand(10_000, generator=g))
    size = size if spread else torch.full((10_000,), 1.9999)
    cost = torch.stack([torch.zeros(10_000), size, size, size], 1)
    value = torch.stack([torch.zeros(10_000), *(size * torch.rand(3, 10_000, generator=g))], 1)
    totals = exact_totals(value, cost, 5)
    expected = by_sorting(value, cost, totals)
    found = together.multipliers_together(
        dual.all_users(value, cost, None), totals, [(0.9 * m, 1.1 * m) for m in expected]
    )
    assert all(one in (None, m) for one, m in zip(found, expected, strict=True))
    assert None not in found or spread == 60


def test_sizes_beyond_single_precision_are_left_to_the_search() -> None:
    value, cost = random_problem(12, 900, 4)
    value, cost = (1e20 * value).float(), (1e31 * cost).float()
    budgets = 1e31 * torch.linspace(0.05, 0.4, 4, dtype=torch.float64)
    expected = [solve_multipliers(value, cost, b).item() for b in budgets]
    assert solve_multipliers(value, cost, budgets).tolist() == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [(0, 0), (899, 3)])
def test_what_is_not_finite_is_found(bad: float, at: tuple[int, int]) -> None:
    for name in ("value", "cost"):
        value, cost = random_problem(13, 900, 4)
        (value if name == "value" else cost)[at] = bad
        with pytest.raises(InputError, match=rf"{name}\[{at[0]}, {at[1]}\] is"):
            solve_multipliers(value, cost, torch.linspace(0.1, 0.4, 4))


def test_budgets_that_do_not_bind_and_one_too_small() -> None:
    value, cost = random_problem(14, 4000, 5)
    cost = cost + 0.25
    free = recount(cost, value.argmax(1))
    shares = [0.9, 0.99, 1.0, 1.5]
    totals = [budget_between(cost, value, 0.5), *(x * free for x in shares)]
    expected = by_sorting(value, cost, totals)
    assert dual.critical_multipliers(value, cost, totals) == expected
    assert expected[-2:] == [0.0, 0.0] < expected[1:3]
    with pytest.raises(InputError, match="the least feasible spend"):
        dual.critical_multipliers(value, cost, [*totals, 0.9 * recount(cost, cost.argmin(1))])


def test_the_curve_at_its_edges() -> None:
    """Its sums are the policy's spend, users within rounding of an edge aside."""
    from lightning_budget.allocation.compiled import run

    value, cost = (x.float() for x in random_problem(15, 9000, 5))
    slots = together.Slots.over(0.2, 2.0, 4)
    curve = run.spend_by_slope(value.T, cost.T, slots, np.ones(slots.count, np.int8))
    assert curve is not None
    slope = efficient_frontier(value, cost).slope
    inside = (slope > slots.edge(0)) & (slope < slots.edge(slots.count))
    assert abs(sum(len(rows) for _, rows, _ in curve.listed) - int(inside.sum())) <= 3
    checked = 0
    for t in range(0, slots.count, 50):
        edge = slots.edge(t)
        if ((slope / edge - 1).abs() > 1e-5).all():
            spent = given(cost, policy_treatment(value, cost, edge))
            assert math.fsum(curve.parts[t:].ravel().tolist()) == math.fsum(spent.double().tolist())
            checked += 1
    assert checked > 10
