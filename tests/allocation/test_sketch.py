"""The sketch against the users themselves: exact at its edges, bounded in between, the same in any pieces."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_budget.allocation import SlopeSketch, compiled, policy_treatment, sketch, solve_multipliers
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.sketch import BINS, FRACTION_BITS, OCTAVES, bin_of, edges
from lightning_budget.errors import InputError
from tests.allocation.cases import PROBLEMS, Make
from tests.allocation.reference import budget_between, highs, random_problem, recount


def per_user(value: Tensor, cost: Tensor, multiplier: float) -> tuple[float, float]:
    """Spend and value of the policy, counted."""
    treatment = policy_treatment(value, cost, multiplier)
    return recount(cost, treatment) / len(value), recount(value, treatment) / len(value)


@given(st.floats(5e-324, LARGEST))
def test_a_slope_lies_in_its_bin(slope: float) -> None:
    edge = edges()
    for x in (slope, math.nextafter(slope, math.inf)):
        if x < math.inf:
            k = int(bin_of(torch.tensor([x], dtype=torch.float64)))
            assert edge[k] < x <= edge[k + 1]
            if 0 < k < BINS + 1:
                assert edge[k + 1] <= edge[k] * (1 + 2**-FRACTION_BITS)


def test_edges_belong_to_the_bin_below() -> None:
    edge = edges()
    assert len(edge) == BINS + 3
    assert bool((edge.diff() > 0).all())
    assert (edge[1], edge[-2]) == (2.0**-OCTAVES, 2.0**OCTAVES)
    assert torch.equal(bin_of(edge[1:]), torch.arange(BINS + 2))


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spend_and_value_are_exact_at_edges_and_bounded_between(grid: bool, dtype: torch.dtype) -> None:
    value, cost = (x.to(dtype) for x in random_problem(3, 3000, 5, grid))
    curve = SlopeSketch().add(value, cost).curve()
    for price in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 1e13, LARGEST):
        spend, worth = curve.at_multiplier(price)
        counted = per_user(value, cost, price)
        assert spend == pytest.approx((counted[0],) * 2, rel=1e-12, abs=1e-12)
        assert worth == pytest.approx((counted[1],) * 2, rel=1e-12, abs=1e-12)
    wide = 0
    for price in torch.rand(40, generator=torch.Generator().manual_seed(0)).mul(6).sub(4).exp().tolist():
        spend, worth = curve.at_multiplier(price)
        counted = per_user(value, cost, price)
        assert spend[0] - 1e-12 <= counted[0] <= spend[1] + 1e-12
        assert worth[0] - 1e-12 <= counted[1] <= worth[1] + 1e-12
        wide += spend[0] < spend[1]
        assert spend[1] - spend[0] <= 0.03 * curve.spend[-1]
    assert grid or wide > 30


tables = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.lists(st.tuples(st.integers(-4, 8), st.integers(-3, 6)), min_size=k, max_size=k), min_size=1, max_size=8
    )
)


@settings(max_examples=150, deadline=None)
@given(tables, st.floats(0, 1.2))
def test_the_multiplier_keeps_to_the_budget_and_its_bounds_hold(rows: list[list[tuple[int, int]]], part: float) -> None:
    points = torch.tensor(rows, dtype=torch.float64)
    value, cost = points[..., 0], points[..., 1]
    total = budget_between(cost, value, part)
    budget = max(total, recount(cost, cost.argmin(1))) / len(value) + 1e-9
    found = SlopeSketch().add(value, cost).multiplier(budget)
    exact = float(solve_multipliers(value, cost, budget))
    assert found.low < exact <= found.multiplier or exact == found.multiplier == 0
    counted = per_user(value, cost, found.multiplier)
    assert counted == pytest.approx((found.spend, found.value), abs=1e-12)
    assert found.spend <= budget
    best = highs(value, cost, budget * len(value), integer=False) / len(value)
    assert found.value - 1e-6 <= best <= found.dual_bound + 1e-6  # the solver's own tolerance


def test_the_error_is_within_a_bin() -> None:
    value, cost = random_problem(5, 20_000, 5)
    sketch = SlopeSketch().add(value, cost)
    for part in (0.02, 0.2, 0.5, 0.9):
        budget = budget_between(cost, value, part) / len(value)
        found = sketch.multiplier(budget)
        exact = float(solve_multipliers(value, cost, budget))
        assert exact <= found.multiplier <= exact * (1 + 2**-FRACTION_BITS)
        assert 0 <= found.dual_bound - found.value <= 0.01 * found.value


def test_batches_and_merges_count_the_same_users() -> None:
    value, cost = random_problem(6, 5000, 4)
    whole = SlopeSketch().add(value, cost)
    pieces = SlopeSketch()
    for v, c in zip(value.split(700), cost.split(700), strict=True):
        pieces.add(v, c)
    halves = SlopeSketch().add(value[:2000], cost[:2000]).merge(SlopeSketch().add(value[2000:], cost[2000:]))
    for other in (pieces, halves.merge(SlopeSketch()), SlopeSketch().merge(whole)):
        assert (other.users, other.treatments) == (5000, 4)
        for name in ("price", "gain"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
        assert (other.cost, other.value) == pytest.approx((whole.cost, whole.value), rel=1e-12)
    assert whole.price.numel() == SlopeSketch().price.numel()


def nearly_collinear() -> tuple[Tensor, Tensor]:
    """All slopes are the edge of a bin but for rounding: some steps tie, and some come out above the one before."""
    g = torch.Generator().manual_seed(10)
    cost = torch.rand(900, 5, generator=g, dtype=torch.float64) ** 8
    return torch.nextafter(1.5 * cost, 4 * torch.rand(900, 5, generator=g, dtype=torch.float64).round()), cost


@pytest.mark.parametrize("make", [*PROBLEMS, nearly_collinear], ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_and_torch_agree_to_the_last_bit(
    make: Make, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "_USERS", 401)  # not a multiple of a block, nor a part of the users
    value, cost = (x.to(dtype) for x in make())
    monkeypatch.setenv(compiled.SWITCH, "0")
    plain = SlopeSketch().add(value, cost)
    monkeypatch.setenv(compiled.SWITCH, "1")
    apart = [x.repeat_interleave(2, 1)[:, ::2] for x in (value, cost)]
    for threads, (v, c) in ((1, (value, cost)), (3, [x.T.contiguous().T for x in (value, cost)]), (2, apart)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found = SlopeSketch().add(v, c)
        assert torch.equal(found.price, plain.price)
        assert torch.equal(found.gain, plain.gain)
        assert (found.cost, found.value) == (plain.cost, plain.value)
    assert bool((plain.price > 0).any())


@given(tables)
def test_ties_are_stepped_through_alike(rows: list[list[tuple[int, int]]]) -> None:
    value, cost = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled.SWITCH, "0")
        plain = SlopeSketch().add(value, cost)
    assert SlopeSketch().add(value, cost).to_dict() == plain.to_dict()


@pytest.mark.parametrize("switch", ["0", "1"])
def test_refused_users_leave_no_trace(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, switch)
    monkeypatch.setattr(sketch, "_USERS", 200)
    value, cost = random_problem(8, 500, 4)
    counted = SlopeSketch().add(value, cost)
    before = counted.to_dict()
    for bad, (user, arm) in ((math.nan, (499, 0)), (math.inf, (250, 3)), (-math.inf, (0, 2))):
        wrong = value.clone()
        wrong[user, arm] = bad
        for pair, name in (((wrong, cost), "value"), ((value, wrong), "cost")):
            with pytest.raises(InputError, match=rf"{name}\[{user}, {arm}\] is {bad}"):
                counted.add(*pair)
    assert counted.to_dict() == before


def test_plain_containers_give_it_back() -> None:
    sketch = SlopeSketch().add(*random_problem(7, 500, 4))
    back = SlopeSketch.from_dict(json.loads(json.dumps(sketch.to_dict())))
    assert torch.equal(back.price, sketch.price)
    assert torch.equal(back.gain, sketch.gain)
    assert back.curve() == sketch.curve()
    assert (back.users, back.treatments) == (500, 4)
    with pytest.raises(InputError, match="laid out"):
        SlopeSketch.from_dict({**sketch.to_dict(), "layout": [8, 40]})


def test_slopes_beyond_the_bins_are_kept_at_the_ends() -> None:
    value = torch.tensor([[0.0, 1e20], [0.0, 1e-20]], dtype=torch.float64)
    cost = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    curve = SlopeSketch().add(value, cost).curve()
    assert curve.at_budget(0.0).multiplier == LARGEST
    assert (curve.at_budget(0.6).multiplier, curve.at_budget(0.6).low) == (2.0**-OCTAVES, 0.0)
    assert curve.at_budget(2.0).multiplier == 0.0
    assert curve.at_multiplier(1.0)[0] == (0.5, 0.5)


def test_bad_input() -> None:
    sketch = SlopeSketch().add(*random_problem(8, 50, 4))
    cases = {
        "3 treatments; allowed: 4": lambda: sketch.add(*random_problem(8, 50, 3)),
        "users with 3": lambda: sketch.merge(SlopeSketch().add(*random_problem(8, 50, 3))),
        r"value\[0, 0\] is nan": lambda: sketch.add(torch.full((2, 4), math.nan), torch.zeros(2, 4)),
        "budget=-1.0 per user; allowed: at least 0.0": lambda: sketch.multiplier(-1.0),
        "budget=nan": lambda: sketch.multiplier(math.nan),
        "a sketch of no users": lambda: SlopeSketch().curve(),
    }
    for match, call in cases.items():
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert sketch.users == 50
