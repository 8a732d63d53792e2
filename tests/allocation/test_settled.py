"""Who a pass settles has one cost throughout, in exact arithmetic; and the sums it keeps are exact."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lightning_budget.allocation import compiled, efficient_frontier, settled_torch
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.settled import arm_dtype, settle
from tests.allocation.cases import PROBLEMS, Make, costs_above_one, plain
from tests.allocation.reference import given, recount


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "1" if request.param == "compiled" else "0")
    monkeypatch.setattr(settled_torch, "PIECE", 97)


def best(value: Tensor, cost: Tensor, multiplier: float) -> set[int]:
    """All arms with the exactly largest score; at the largest float those that cost least."""
    if multiplier == LARGEST:
        return {j for j, c in enumerate(cost.tolist()) if c == min(cost.tolist())}
    score = [
        Fraction(v) - Fraction(multiplier) * Fraction(c) for v, c in zip(value.tolist(), cost.tolist(), strict=True)
    ]
    return {j for j, s in enumerate(score) if s == max(score)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", PROBLEMS)
def test_settled_in_exact_arithmetic(make: Make, dtype: torch.dtype) -> None:
    value, cost = (x[:200].to(dtype) for x in make())
    slope = efficient_frontier(value, cost).slope
    # Ends on breakpoints, and a few ulps beside them, where rounding decides who seems to lead.
    at = slope[[len(slope) // 3, len(slope) // 2]].tolist()
    ends = {0.0, LARGEST, *at, *(math.nextafter(m, math.inf) for m in at), *(math.nextafter(m, 0.0) for m in at)}
    at_end = {end: [best(v, c, end) for v, c in zip(value, cost, strict=True)] for end in ends}
    for low, high in itertools.combinations_with_replacement(sorted(ends), 2):
        arm = torch.full((len(value),), -1, dtype=arm_dtype(value.shape[1]))
        (part,) = settle(value.T, cost.T, [(low, high)], arm)
        left = set(part.rows.tolist())
        assert torch.equal(part.value, value.T[:, part.rows])
        assert torch.equal(part.cost, cost.T[:, part.rows])
        kept = torch.ones(len(value), dtype=torch.bool)
        kept[part.rows] = False
        for i in set(range(len(value))) - left:
            assert at_end[low][i] == at_end[high][i] == {int(arm[i])}
        chosen = arm.clamp(min=0)
        assert math.fsum(part.spend) == math.fsum(given(cost, chosen)[kept].tolist())
        assert math.fsum(part.worth) == math.fsum(given(value, chosen)[kept].tolist())
        assert part.finite


def test_a_narrow_bracket_leaves_few_and_several_are_independent() -> None:
    value, cost = plain()
    ends = [(0.99, 1.0), (0.3, 0.303), (1.0, LARGEST), (0.0, 0.01)]
    together = settle(value.T, cost.T, ends)
    assert 0 < len(together[0].rows) < 40
    for (low, high), part in zip(ends, together, strict=True):
        (alone,) = settle(value.T, cost.T, [(low, high)])
        assert torch.equal(alone.rows, part.rows)
        assert math.fsum(alone.spend) == math.fsum(part.spend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_at_which_scores_overflow_settle_nobody(dtype: torch.dtype) -> None:
    value, cost = (x.to(dtype) for x in costs_above_one())
    for end in (1e300, 1e-310) if dtype == torch.float64 else (1e38, 1e300, 1e-40):
        (part,) = settle(value.T, cost.T, [(end, end)])
        dear = end > 1
        kept = torch.ones(len(value), dtype=torch.bool)
        kept[part.rows] = False
        at = cost.amin(1) if dear else given(cost, value.argmax(1))
        assert math.fsum(part.spend) == math.fsum(at[kept].double().tolist())


def test_sums_do_not_round() -> None:
    g = torch.Generator().manual_seed(0)
    size = 10 ** (16 * torch.rand(40_000, 1, generator=g, dtype=torch.float64) - 8)
    cost = size * torch.randn(40_000, 1, generator=g, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        x = cost.to(dtype)
        arm = torch.empty(len(x), dtype=torch.int8)
        order = torch.randperm(len(x), generator=g)
        for y in (x, x[order]):
            (part,) = settle(y.T, y.T, [(0.0, 0.0)], arm)
            assert not len(part.rows)
            assert math.fsum(part.spend) == math.fsum(part.worth) == recount(x, torch.zeros(len(x)).long())


def test_margins_follow_sizes_that_jump_between_blocks() -> None:
    """Leads within rounding are judged with care, though the users before were a million times smaller."""
    g = torch.Generator().manual_seed(0)
    scale = torch.where(torch.arange(4000) % 1700 < 600, 1e-3, 1e3)
    cost = torch.stack([torch.zeros(4000), scale * (1 + torch.rand(4000, generator=g))], dim=1)
    value = (2.1 * cost.double()).float()
    arm = torch.empty(4000, dtype=torch.int8)
    (part,) = settle(value.T, cost.T, [(2.1, 2.1)], arm)
    for i in set(range(4000)) - set(part.rows.tolist()):
        assert best(value[i], cost[i], 2.1) == {int(arm[i])}
