"""Pacing through simulated days: the budget is spent and never overspent, whatever comes otherwise than foreseen."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lightning_budget.allocation import ArrivalCurve, PacedPolicy, SlopeSketch
from lightning_budget.allocation.price_policy import best_treatment
from lightning_budget.errors import InputError
from tests.allocation.pacing_days import PER_USER, Day, no_report, paced, users

EXPECTED = 8000

# Number of users, ratio of real to predicted costs, drift of values over the day; least share of the hindsight value.
DAYS = {
    "as foreseen": (8000, 1.0, 0.0, 0.99),
    "dearer": (8000, 1.5, 0.0, 0.99),
    "cheaper": (8000, 0.6, 0.0, 0.98),
    "more users": (12_000, 1.0, 0.0, 0.985),
    "fewer users": (5000, 1.0, 0.0, 0.98),
    "rising": (8000, 1.2, 0.6, 0.95),
    "falling, fewer, cheaper": (6000, 0.8, -0.6, 0.95),
}


@pytest.mark.parametrize("name", DAYS)
@pytest.mark.parametrize("every", [1, 100])
def test_the_budget_is_spent_well_and_not_overspent(name: str, every: int) -> None:
    number, bias, drift, least = DAYS[name]
    day = Day.draw(number, bias, drift)
    policy, budget = paced(EXPECTED)
    got = day.run(policy.choose, policy.report, every)
    assert got.spent[-1] >= 0.98 * budget
    assert got.spent[-1] <= (1.005 * budget if every > 1 else budget + got.dearest)
    assert got.value >= least * day.hindsight(budget)


@pytest.mark.parametrize("name", ["dearer", "cheaper", "more users", "fewer users", "falling, fewer, cheaper"])
def test_a_fixed_multiplier_misses_by_far_more(name: str) -> None:
    number, bias, drift, _ = DAYS[name]
    day = Day.draw(number, bias, drift)
    policy, budget = paced(EXPECTED)
    fixed = policy.multiplier
    missed = abs(day.run(lambda v, c: best_treatment(v, c, fixed), no_report, 1).spent[-1] - budget)
    got = day.run(policy.choose, policy.report, 100)
    assert missed > 0.2 * budget
    assert abs(got.spent[-1] - budget) < 0.1 * missed


def test_spend_follows_the_traffic() -> None:
    day, (policy, budget) = Day.draw(12_000, 1.4), paced(EXPECTED)
    spent = torch.tensor(day.run(policy.choose, policy.report, 50).spent)
    planned = torch.linspace(0, budget, len(spent))
    assert float((spent - planned)[3000:].abs().max()) < 0.05 * budget


@pytest.mark.parametrize("bias", [1.0, 3.0])
def test_random_costs_overspend_by_one_decision_at_most(bias: float) -> None:
    day, (policy, budget) = Day.draw(8000, bias, noisy=True), paced(EXPECTED)
    got = day.run(policy.choose, policy.report, 1)
    assert 0.98 * budget <= got.spent[-1] <= budget + got.dearest
    over = [i for i, s in enumerate(got.spent) if s > budget]
    assert not over or got.spent[over[0] - 1] < budget


def test_without_any_report_predictions_keep_the_budget() -> None:
    day, (policy, budget) = Day.draw(20_000), paced(EXPECTED)
    got = day.run(policy.choose, no_report, 1)
    assert 0.999 * budget <= got.spent[-1] <= budget + 1e-9


def test_money_that_is_gone_is_not_spent() -> None:
    policy, budget = paced(100)
    policy.report(budget * 1.01, 0.5)
    value, cost = users(5, 50)
    assert policy(value, cost).tolist() == [0] * 50
    assert [policy.choose(v, c) for v, c in zip(value.tolist(), cost.tolist(), strict=True)] == [0] * 50
    # Money that comes back is spent again.
    back, back_cost = torch.zeros(40, 5), torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0]).expand(40, 5)
    twin, _ = paced(100)
    twin.report(budget * 1.01, 0.5)
    for p in (policy, twin):
        p.report(budget * 1.1, 0.6)
        p.state.multiplier = 0.1
    back[:, 2] = 5.0
    singly = [twin.choose(v, c) for v, c in zip(back.tolist(), back_cost.tolist(), strict=True)]
    assert policy(back, back_cost).tolist() == singly
    assert set(singly) == {0, 2}
    # Nothing but the cheapest will do, even where another pays back as well.
    gone, _ = paced(100)
    gone.state.pending = budget + 0.5
    gone.state.multiplier = 0.1
    assert gone.choose([0.0, 9.0, 0.0, 0.0, 0.0], [-1.0, -0.6, 0.0, 0.0, 0.0]) == 0
    # The cheapest arm may cost money, and a dearer one as little.
    assert policy.choose([1.0, 2.0, 9.0, 1.0, 1.0], [1.0, 1.0, 4.0, 3.0, 2.0]) == 1


@pytest.mark.parametrize("bias", [1.0, 2.0, 0.5])
def test_what_is_left_buys_what_fits(bias: float) -> None:
    policy, budget = paced(100)
    policy.state.multiplier, policy.state.bias, policy.state.pending = 0.1, bias, budget / bias - 1.5
    assert policy.left == pytest.approx(1.5 * bias)
    assert policy.choose([0.0, 1.0, 2.0, 3.0, 9.0], [0.0, 0.5, 1.4, 1.6, 2.0]) == 2
    assert policy.choose([0.0, 1.0, 2.0, 3.0, 9.0], [0.0, 0.5, 1.4, 1.6, 2.0]) == 0


def test_a_late_start_spends_what_is_left_over_the_rest() -> None:
    day, (policy, budget) = Day.draw(EXPECTED), paced(EXPECTED)
    first = int(0.4 * EXPECTED)
    policy.report(0.1 * budget, 0.4)
    got = day.run(policy.choose, lambda s, x: policy.report(0.1 * budget + s, x), 100, first)
    assert 0.98 * budget <= 0.1 * budget + got.spent[-1] <= budget + got.dearest
    assert got.value >= 0.98 * day.hindsight(0.9 * budget, first)
    assert policy.traffic_ratio == pytest.approx(1.0, abs=0.01)
    # Counting users alone leads to the same, where the horizon is right.
    counted, _ = paced(EXPECTED)
    counted.report(0.1 * budget, 0.4)
    counted_day = day.run(counted.choose, lambda s, x: counted.report(0.1 * budget + s), 100, first)
    assert counted_day.spent[-1] == pytest.approx(got.spent[-1], rel=1e-3)


def test_times_are_read_on_the_arrival_curve() -> None:
    curve = ArrivalCurve((6.0, 12.0, 24.0), (0.0, 0.2, 1.0))
    assert [curve.share(t) for t in (0, 6, 9, 12, 18, 24, 30)] == pytest.approx([0, 0, 0.1, 0.2, 0.6, 1, 1])
    by_time, _ = paced(1000)
    by_time.arrivals = curve
    by_share, _ = paced(1000)
    assert by_time.report(20.0, time=9.0) == by_share.report(20.0, 0.1)
    assert by_time.state == by_share.state


def test_ratios_are_those_of_the_day() -> None:
    day, (policy, _) = Day.draw(12_000, 1.5), paced(EXPECTED)
    day.run(policy.choose, policy.report, 100)
    assert policy.state.bias == pytest.approx(1.5, rel=0.1)
    assert policy.traffic_ratio == pytest.approx(1.5, rel=0.1)
    assert "traffic × 1.4" in str(policy)
    fresh, _ = paced(EXPECTED)
    value, cost = users(5, 3)
    fresh(value, cost)
    fresh.report(10 * fresh.state.expected, 3 / EXPECTED)
    assert 1.2 < fresh.spend_ratio < 2  # three users are no evidence of a tenfold cost


def test_a_batch_is_its_users_in_turn() -> None:
    value, cost = users(6, 3000)
    one, _ = paced(2000)
    many, _ = paced(2000)
    for v, c in zip(value.split(300), cost.split(300), strict=True):
        singly = [one.choose(a, b) for a, b in zip(v.tolist(), c.tolist(), strict=True)]
        assert many(v, c).tolist() == singly
        spend = float(c.gather(1, torch.tensor(singly)[:, None]).sum())
        for policy in (one, many):
            policy.report(policy.state.spend + 1.2 * spend, min(policy.state.share + 0.15, 1.0))
    assert many.state.spend > 0.95 * many.budget  # so that the last users were turned down
    assert many.multiplier == pytest.approx(one.multiplier)
    assert many(value[:0], cost[:0]).shape == (0,)


def test_it_goes_on_as_if_it_had_never_stopped() -> None:
    day, (policy, _) = Day.draw(2000, 1.3), paced(2000)
    stopped, _ = paced(2000)
    whole: list[int] = []
    pieces: list[int] = []
    for i, (v, c) in enumerate(zip(day.value.tolist(), day.cost.tolist(), strict=True)):
        whole.append(policy.choose(v, c))
        pieces.append(stopped.choose(v, c))
        if i % 90 == 89:
            for p in (policy, stopped):
                p.report(p.state.spend + 1.3 * p.state.pending, (i + 1) / 2000)
        if i % 400 == 123:
            stopped = PacedPolicy.from_dict(json.loads(json.dumps(stopped.to_dict(), allow_nan=False)))
    assert whole == pieces
    assert stopped.state == policy.state


def test_bad_input() -> None:
    sketch = SlopeSketch().add(*users(3, 100))
    policy = PacedPolicy(sketch, 10.0, 100)
    policy.report(3.0, 0.5)
    before = policy.to_dict()
    dear = SlopeSketch().add(torch.zeros(2, 2), torch.ones(2, 2))
    cases = {
        "horizon=-5; allowed: a finite number above 0": lambda: PacedPolicy(sketch, 10.0, -5),
        "horizon=nan": lambda: PacedPolicy(sketch, 10.0, math.nan),
        "budget=0": lambda: PacedPolicy(sketch, 0, 100),
        "least feasible spend": lambda: PacedPolicy(dear, 10.0, 100),
        "a sketch of no users": lambda: PacedPolicy(SlopeSketch(), 10.0, 100),
        "spend=2.0 after 3.0; allowed: a finite number that does not fall": lambda: policy.report(2.0, 0.6),
        "spend=nan after": lambda: policy.report(math.nan, 0.6),
        "share=0.4 after 0.5": lambda: policy.report(4.0, 0.4),
        "share=nan; allowed: from 0 to 1": lambda: policy.report(4.0, math.nan),
        r"share=1\.5": lambda: policy.report(4.0, 1.5),
        "give one of both": lambda: policy.report(4.0, time=3.0),
        r"costs\[2\] is nan": lambda: policy.choose([0.0] * 5, [0.0, 1.0, math.nan, 2.0, 3.0]),
        "3 values and 3 costs; allowed: 5": lambda: policy.choose([0.0] * 3, [0.0] * 3),
        r"value\[1, 0\] is nan": lambda: policy(torch.tensor([[0.0] * 5, [math.nan] * 5]), torch.zeros(2, 5)),
        "4 treatments; allowed: 5": lambda: policy(torch.zeros(2, 4), torch.zeros(2, 4)),
        "arrival curve": lambda: ArrivalCurve((0.0, 0.0), (0.0, 1.0)),
        "arrival curve with": lambda: ArrivalCurve((0.0, 1.0), (0.0, 0.9)),
        "shares from 0 to 1": lambda: ArrivalCurve((0.0, 1.0, 2.0), (0.0, 1.1, 1.0)),
    }
    for match, call in cases.items():
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert policy.to_dict() == before  # what is refused changes nothing
    assert PER_USER * 100 > policy.left > 0
