"""Thinning many users out for several budgets at once: what it settles is settled, and it finds what sorting finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lightning_budget.allocation import chunks, dual, efficient_frontier, narrowing, policy_treatment, solve_multipliers
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.narrowing import narrowed, two_floats
from tests.allocation.reference import budget_between, given, random_problem, recount

pytestmark = pytest.mark.usefixtures("thinned")
SHARES = (0.0, 1e-4, 0.02, 0.3, 0.7, 0.999, 1.0, 1.5)
"""From the cheapest feasible spend, by the free optimum's, to more than can be spent."""


@pytest.fixture
def thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few hundred users many, and every piece of them end in the middle of something."""
    monkeypatch.setattr(dual, "FINISH_USERS", 50)
    monkeypatch.setattr(dual, "SAMPLE_USERS", 64)
    monkeypatch.setattr(chunks, "CPU_USERS", 97)
    monkeypatch.setattr(narrowing, "SLICE", 211)
    monkeypatch.setattr(narrowing, "PIECE", 41)


def by_sorting(value: Tensor, cost: Tensor, totals: list[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    with monkeypatch.context() as patch:
        patch.setattr(dual, "FINISH_USERS", 10**6)
        return [m for m, _ in dual.critical_multipliers(value, cost, totals)]


def by_thinning(value: Tensor, cost: Tensor, totals: list[float]) -> list[float]:
    return [m for m, _ in dual.critical_multipliers(value, cost, totals)]


Make = Callable[[], tuple[Tensor, Tensor]]


def plain() -> tuple[Tensor, Tensor]:
    return random_problem(1, 900, 4)


def massive_ties() -> tuple[Tensor, Tensor]:
    """Nearly every user has one of a few slopes: no bracket separates them."""
    return random_problem(2, 900, 4, grid=True)


def one_slope() -> tuple[Tensor, Tensor]:
    cost = torch.cat([torch.zeros(900, 1), torch.rand(900, 1, generator=torch.Generator().manual_seed(3))], 1)
    return 2 * cost.double(), cost.double()


def duplicate_arms() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(4, 900, 3)
    return value[:, [0, 1, 1, 2, 2, 0]], cost[:, [0, 1, 1, 2, 2, 0]]


def zero_cost_arms() -> tuple[Tensor, Tensor]:
    """The best arm of a third of the users is free, and a few users have nothing but free arms."""
    value, cost = random_problem(5, 900, 5)
    cost[:, 3] = 0
    value[::3, 3] += 10
    cost[::11] = 0
    return value, cost


def costs_above_one() -> tuple[Tensor, Tensor]:
    """Even the control costs: scores at the largest multiplier overflow for every arm."""
    value, cost = random_problem(6, 900, 4)
    return value, 3 + cost


def negative_costs() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(7, 900, 4)
    return value, cost - 0.4


def many_magnitudes() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(8, 900, 4)
    scale = torch.logspace(-12, 12, 900, dtype=torch.float64)[:, None]
    return value * scale, cost * scale


def single_precision() -> tuple[Tensor, Tensor]:
    value, cost = random_problem(9, 900, 4)
    return value.float(), cost.float()


PROBLEMS = [
    plain,
    massive_ties,
    one_slope,
    duplicate_arms,
    zero_cost_arms,
    costs_above_one,
    negative_costs,
    many_magnitudes,
    single_precision,
]


@pytest.mark.parametrize("make", PROBLEMS)
def test_several_budgets_at_once_equal_sorting(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    value, cost = make()
    totals = [budget_between(cost, value, share) for share in SHARES]
    expected = by_sorting(value, cost, totals, monkeypatch)
    assert by_thinning(value, cost, totals) == expected
    assert by_thinning(value, cost, totals[::-1]) == expected[::-1]
    assert [by_thinning(value, cost, [total])[0] for total in totals] == expected
    assert expected[-1] == 0


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("lost", range(3))
def test_a_bracket_that_misses_for_one_budget_only(make: Make, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    value, cost = make()
    totals = [budget_between(cost, value, share) for share in (0.1, 0.4, 0.8)]
    expected = by_sorting(value, cost, totals, monkeypatch)
    honest, missed = dual._brackets, []

    def off(v: Tensor, c: Tensor, targets: list[float], users: int) -> list[tuple[float, float]]:
        found = honest(v, c, targets, users)
        if len(targets) == 3:
            high = found[lost][1]
            found[lost] = (1.5 * high + 1, 2 * high + 2)
            parts = narrowed(value, cost, totals, found)
            missed.append([part is None for part in parts])
        return found

    monkeypatch.setattr(dual, "_brackets", off)
    assert by_thinning(value, cost, totals) == expected
    assert missed[0][lost]


@pytest.mark.parametrize("make", PROBLEMS)
def test_budgets_that_are_spent_to_the_last_bit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the exact spend of a breakpoint that breakpoint fits, one float less and it does not."""
    value, cost = make()
    slope = efficient_frontier(value, cost).slope
    exact = [recount(cost, policy_treatment(value, cost, m)) for m in slope[:: len(slope) // 7]]
    totals = [t for spend in exact for t in (spend, math.nextafter(spend, -math.inf))]
    expected = by_sorting(value, cost, totals, monkeypatch)
    assert by_thinning(value, cost, totals) == expected
    monkeypatch.setattr(dual, "narrowed", lambda v, c, t, brackets: [None] * len(t))
    assert by_thinning(value, cost, totals) == expected


def exact_cost(value: Tensor, cost: Tensor, multiplier: float) -> set[float]:
    """Costs of all arms with the exactly largest score."""
    score = [
        Fraction(v) - Fraction(multiplier) * Fraction(c) for v, c in zip(value.tolist(), cost.tolist(), strict=True)
    ]
    return {float(c) for s, c in zip(score, cost.tolist(), strict=True) if s == max(score)}


@pytest.mark.parametrize("make", PROBLEMS)
def test_who_is_settled_has_one_cost_throughout_in_exact_arithmetic(make: Make) -> None:
    value, cost = (x[:400] for x in make())
    slope = efficient_frontier(value, cost).slope
    # Ends on breakpoints, and a few ulps beside them, where rounding decides who seems to lead.
    at = slope[[len(slope) // 3, len(slope) // 2]].tolist()
    above, below = (math.nextafter(m, math.inf) for m in at), (math.nextafter(m, 0.0) for m in at)
    ends = [*at, *above, *below]
    for low, high in itertools.combinations(sorted(set(ends)), 2):
        # A budget between the spends at the ends, so that the bracket is proved.
        spends = [recount(cost, policy_treatment(value, cost, m)) for m in (low, high)]
        if spends[0] == spends[1]:
            continue
        (part,) = narrowed(value, cost, [spends[1]], [(low, high)])
        assert part is not None
        left = set(part.users.tolist())
        middle, settled = (low + high) / 2, []
        for i in range(len(value)):
            paid = [exact_cost(value[i], cost[i], m) for m in (low, middle, high)]
            if i not in left:
                assert paid[0] == paid[1] == paid[2]
                assert len(paid[0]) == 1
                settled += paid[0]
        assert math.fsum(part.settled) == math.fsum(settled)


def test_most_are_settled_by_a_narrow_bracket() -> None:
    value, cost = plain()
    total = budget_between(cost, value, 0.3)
    (found,) = by_thinning(value, cost, [total])
    (part,) = narrowed(value, cost, [total], [(0.99 * found, found)])
    assert part is not None
    assert 0 < len(part.users) < 30
    low, high = narrowed(value, cost, [total] * 2, [(0.0, 0.99 * found), (1.01 * found, LARGEST)])
    assert low is None
    assert high is None


def test_ends_so_large_that_scores_overflow_settle_nobody_wrongly() -> None:
    value, cost = costs_above_one()
    least = recount(cost, cost.argmin(1))
    (part,) = narrowed(value, cost, [least], [(0.0, LARGEST)])
    assert part is not None
    settled = torch.ones(len(value), dtype=torch.bool)
    settled[part.users] = False
    dear = given(cost, policy_treatment(value, cost, 0.0)) > cost.amin(1)
    assert not bool((settled & dear).any())


def test_two_floats_keep_what_rounding_drops() -> None:
    parts = [1e16, 1.0, -1e-3, 1e16]
    exact = sum(map(Fraction, parts))
    assert Fraction(math.fsum(parts)) != exact
    assert abs(sum(map(Fraction, two_floats(parts))) - exact) < Fraction(1e-16)
    assert two_floats([]) == [0.0, 0.0]


def test_multipliers_of_budgets_per_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the public door, with budgets that bind and one that does not."""
    value, cost = single_precision()
    budgets = torch.tensor([0.02, 5.0, 0.2, 1e-9], dtype=torch.float64)
    found = solve_multipliers(value, cost, budgets)
    assert float(found[1]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(dual, "FINISH_USERS", 10**6)
        assert torch.equal(found, solve_multipliers(value, cost, budgets))
